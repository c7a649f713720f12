"""What Stripe says about an order's payment. The only place where an order becomes paid."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import stripe

from flask_idempotent.checkout import stripe_client

from . import orders
from .orders import Order, Status

if TYPE_CHECKING:
    from stripe.checkout import Session

log = logging.getLogger(__name__)


def refresh(order: Order) -> tuple[Order, bool]:
    """Bring an open order up to date with its Checkout Session.

    :param order: the order as it was read.
    :return: The order as it is now, and whether that is Stripe's word: False when Stripe could not be asked, and
        this is what was last known.
    """
    if order.state is not Status.OPEN or order.session_id is None:
        return order, True
    try:
        # Without retries: a page is waiting, and it will ask again.
        session = stripe_client().v1.checkout.sessions.retrieve(order.session_id, options={"max_network_retries": 0})
    except stripe.StripeError as error:
        extra = {"order": order.id, "request_id": error.request_id}
        log.warning("Stripe could not be asked about an order: %s", type(error).__name__, extra=extra)
        return order, False
    target = judge(order, session)
    if target is None:
        return order, True
    if orders.move(order, target) and target is Status.FAILED:
        log.error("An order was paid with another amount or currency.", extra={"order": order.id})
    return orders.find(order.id) or order, True


def judge(order: Order, session: Session) -> Status | None:
    """Say where a Checkout Session leads its order; None when it stays open.

    A session that is complete but unpaid stays open, too: some methods of payment take days.
    """
    if session.status == "expired":
        return Status.EXPIRED
    if session.status != "complete" or session.payment_status != "paid":
        return None
    asked = (order.id, order.amount, order.currency)
    paid = (session.client_reference_id, session.amount_total, session.currency)
    return Status.PAID if paid == asked else Status.FAILED
