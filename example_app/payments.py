"""What Stripe says about an order's payment, and what follows from it. The only place where an order becomes paid.

Events are hints: they come twice, late and in any order. Each makes the shop ask Stripe how the session stands now, and
the order is moved there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import stripe

from flask_idempotent import stripe_client, stripe_errors

from . import orders
from .orders import MOVES, Order, Status

if TYPE_CHECKING:
    from stripe.checkout import Session

log = logging.getLogger(__name__)

TRIES = 5  # of a move that others make, too
WITH_CHARGE = {"expand": ["payment_intent.latest_charge"]}
REFUND_EVENTS = frozenset({"charge.refunded", "refund.created", "refund.updated", "refund.failed"})


def fulfil(event: stripe.Event) -> None:
    """Do what an event asks for; one that means nothing to this shop is left alone.

    :raises CheckoutError: when Stripe cannot be asked; it delivers the event again.
    """
    about: Any = event.data.object
    if event.type.startswith("checkout.session."):
        settle(about.id)
    elif event.type in REFUND_EVENTS and about.payment_intent:
        settle_payment(about.payment_intent)


def settle(session_id: str) -> None:
    """Bring the order of a Checkout Session to where Stripe says it is.

    :raises CheckoutError: when Stripe cannot be asked.
    """
    with stripe_errors():
        session = stripe_client().v1.checkout.sessions.retrieve(session_id, WITH_CHARGE)  # type: ignore[arg-type]
    for _ in range(TRIES):
        order = orders.find(session.client_reference_id or "")
        if order is None:
            log.info("A Checkout Session belongs to no order of this shop.", extra={"session": session.id})
            return
        if _settled(order, session):
            return
    raise RuntimeError("an order was moved by others all the time; the event comes again")


def settle_payment(payment_intent: str) -> None:
    """The same for the order that was paid by a PaymentIntent, whether or not we have heard of the payment.

    :raises CheckoutError: when Stripe cannot be asked.
    """
    order = orders.find_by_payment(payment_intent)
    if order is not None and order.session_id is not None:
        settle(order.session_id)
        return
    with stripe_errors():
        found = stripe_client().v1.checkout.sessions.list({"payment_intent": payment_intent})
    for session in found.data:
        settle(session.id)


def outlook(order: Order) -> Status:
    """Where an order is, or will be once its event arrives. Asks Stripe, and moves nothing.

    When Stripe cannot be asked, it is what was last known.
    """
    if order.state is not Status.OPEN or order.session_id is None:
        return order.state
    try:
        session = stripe_client().v1.checkout.sessions.retrieve(order.session_id, WITH_CHARGE)  # type: ignore[arg-type]
    except stripe.StripeError as error:
        extra = {"order": order.id, "request_id": error.request_id}
        log.warning("Stripe could not be asked about an order: %s", type(error).__name__, extra=extra)
        return order.state
    return judge(order, session) or order.state


def judge(order: Order, session: Session) -> Status | None:
    """Say where a Checkout Session leads its order; None when it stays where it is.

    :param session: with its payment and charge expanded.
    """
    if session.status == "expired":
        return Status.EXPIRED
    intent: Any = session.payment_intent
    if session.status != "complete" or intent is None:
        return None
    if session.payment_status != "paid":
        return Status.PROCESSING if intent.status == "processing" else Status.FAILED
    if intent.latest_charge is not None and intent.latest_charge.refunded:
        return Status.REFUNDED
    asked = (order.id, order.amount, order.currency)
    paid = (session.client_reference_id, session.amount_total, session.currency)
    return Status.PAID if paid == asked else Status.HELD


def _settled(order: Order, session: Session) -> bool:
    """Move the order if there is something to move; False when it has to be read again."""
    target = judge(order, session)
    if target is None:
        return True
    if order.session_id != session.id:
        return _other_session(order, session, target)
    # While a refund is being asked for, a charge that is not refunded yet is nothing new.
    waiting = order.state is Status.REFUNDING and target is Status.PAID
    if waiting or target not in MOVES.get(order.state, frozenset()):
        return True
    intent: Any = session.payment_intent
    paid_by = intent.id if session.payment_status == "paid" else None
    moved = orders.move(order, target, payment_intent=paid_by)
    if moved and target is Status.HELD:
        log.error("An order was paid with another amount or currency.", extra={"order": order.id})
    return moved


def _other_session(order: Order, session: Session, target: Status) -> bool:
    """A session that the order does not know, or knew before another one: it counts when it was paid."""
    if target not in (Status.PROCESSING, Status.PAID, Status.HELD):
        return True
    if orders.attach_session(order.id, session.id, session.url):
        return False
    log.error("An order was paid by a second session; refund it.", extra={"order": order.id, "session": session.id})
    return True
