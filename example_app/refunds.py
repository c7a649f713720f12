"""Sending a buyer's money back, once."""

from __future__ import annotations

from typing import Any

import stripe
from flask import Blueprint, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

from flask_idempotent import (
    CheckoutError,
    IdempotencyError,
    current_idempotency,
    idempotent,
    stripe_client,
    stripe_errors,
)
from flask_idempotent.checkout import is_stored_failure

from . import orders
from .orders import Order, Payment, Refund, Status
from .pages import describe

WAIT = 10  # seconds: a browser that sends a form twice shows the second answer, so that has to be the outcome

refunds = Blueprint("refunds", __name__)

UNSETTLED = (
    "Your refund is asked for, and the answer is not there yet. Ask again in a moment: the money goes back once."
)
OUTCOMES = {"succeeded": Status.REFUNDED, "failed": Status.PAID, "canceled": Status.PAID}


class NotRefundable(CheckoutError):
    """There is no money to send back."""

    code = 409
    problem_code = "order-not-refundable"
    title = "This order cannot be refunded"
    detail = "Only an order that is paid can be refunded."


@refunds.post("/orders/<order_id>/refund")
@idempotent(required=True, wait=WAIT)
def refund_order(order_id: str) -> Response | dict[str, Any]:
    """Refund a paid order, and answer with its status; a browser's form is led back to the order's page."""
    order = orders.find(order_id)
    if order is None:
        raise NotFound
    order = send_back(order)
    if request.accept_mimetypes["text/html"] > request.accept_mimetypes["application/json"]:
        return redirect(url_for("shop.show_order", order_id=order.id), 303)
    return describe(order)


@refunds.errorhandler(IdempotencyError)
@refunds.errorhandler(CheckoutError)
def show_problem(problem: IdempotencyError | CheckoutError) -> ResponseReturnValue:
    """Tell a buyer in the shop's style, and a script in problem details."""
    answer = problem.get_response(request.environ)
    if answer.mimetype != "text/html":
        return answer
    page = render_template(
        "refund_problem.html",
        title="We do not know yet" if problem.retryable else "Nothing went back",
        note=UNSETTLED if problem.retryable else problem.detail,
        again=problem.retryable,
        key=request.form.get("idempotency_key"),
        order_id=(request.view_args or {})["order_id"],
    )
    answer.set_data(page)
    return answer


def send_back(order: Order) -> Order:
    """Refund an order, and return it as it is then.

    The first request to do so leaves its key for Stripe with the order, and each later one, from another tab, say,
    uses that: to Stripe they are all the same refund.

    :raises NotRefundable: when it is not paid.
    :raises CheckoutError: when Stripe's outcome is not known, or it refused.
    """
    orders.begin_refund(order, current_idempotency.derive(f"refund {current_idempotency.attempt}"))
    order = orders.find(order.id) or order
    if order.state is Status.REFUNDED:
        return order
    if order.state is not Status.REFUNDING or order.payment is None or order.refund is None:
        raise NotRefundable
    try:
        outcome = _ask(order.id, order.payment, order.refund)
    except stripe.StripeError as error:
        if _was_refused(error):  # the next attempt may ask anew, under a key of its own
            orders.move(order, Status.PAID)
        with stripe_errors():
            raise
    if outcome is not None:
        orders.move(order, outcome)
    return orders.find(order.id) or order


def _ask(order_id: str, payment: Payment, refund: Refund) -> Status | None:
    """Ask Stripe for the refund; where that leads the order, or None while the money is still on its way."""
    try:
        made = stripe_client().v1.refunds.create(
            {
                "payment_intent": payment.payment_intent,
                "reason": "requested_by_customer",
                "metadata": {"order_id": order_id},
            },
            {"idempotency_key": refund.stripe_key},
        )
    except stripe.InvalidRequestError as error:
        if error.code == "charge_already_refunded":
            return Status.REFUNDED
        raise
    return OUTCOMES.get(made.status or "")


def _was_refused(error: stripe.StripeError) -> bool:
    """Whether nothing can come of the key any more: Stripe said no, or repeats a failure that it keeps.

    Should the kept failure have sent the money back all the same, the next attempt is told so.
    """
    refused = 400 <= (error.http_status or 0) < 500 and error.http_status not in (409, 429)
    return refused or is_stored_failure(error)
