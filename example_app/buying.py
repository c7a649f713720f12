"""Buying by a plain HTML form: with JavaScript and without it, one press of the button is one order.

The form carries its idempotency key in a hidden field, and the answer is a redirect to the payment page. What goes
wrong is answered by a page that tells where the order stands and lets the buyer go on, with the same key.
"""

from __future__ import annotations

from typing import NamedTuple

from flask import Blueprint, make_response, redirect, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from flask_idempotent import (
    CheckoutError,
    CheckoutRefused,
    IdempotencyError,
    KeyReused,
    OutcomeUnknown,
    RecordUnreadable,
    idempotent,
    stripe_client,
)
from flask_idempotent.checkout import create_session

from .catalog import PRODUCTS
from .purchase import remember_session, session_params

WAIT = 10  # seconds: a browser that sends a form twice shows the second answer, so that has to be the outcome

buying = Blueprint("buying", __name__)


class Story(NamedTuple):
    """What a page says about an order that did not come to its payment page."""

    title: str
    note: str
    button: str | None = None  # sends the form again


@buying.post("/buy")
@idempotent(required=True, wait=WAIT)
def buy() -> Response:
    """Make the order of a form with ``product`` and ``quantity``, and lead the buyer to its payment page."""
    session = create_session(stripe_client(), session_params(read_form()))
    remember_session(session)
    if session.url is None:
        raise CheckoutRefused("This order has no payment page any more. Nothing was charged.")
    return redirect(session.url, 303)


def read_form() -> dict[str, object]:
    """The cart in the form of the current request, as :func:`.purchase.session_params` takes it."""
    quantity = request.form.get("quantity", "")
    whole = quantity.isascii() and quantity.isdigit() and len(quantity) < 10
    return {"items": [{"product": request.form.get("product"), "quantity": int(quantity) if whole else quantity}]}


@buying.errorhandler(IdempotencyError)
@buying.errorhandler(CheckoutError)
def show_problem(problem: IdempotencyError | CheckoutError) -> ResponseReturnValue:
    """Tell a buyer in the shop's style, and a script in problem details."""
    answer = problem.get_response(request.environ)
    if answer.mimetype != "text/html":
        return answer
    story = tell(problem)
    page = make_response(
        render_template(
            "problem.html",
            story=story,
            product=PRODUCTS.get(request.form.get("product", "")),
            quantity=request.form.get("quantity", ""),
            key=None if isinstance(problem, KeyReused) else request.form.get("idempotency_key"),
        ),
        answer.status_code,
    )
    for name in ("Retry-After", "Cache-Control", "Vary"):
        if name in answer.headers:
            page.headers[name] = answer.headers[name]
    return page


def tell(problem: IdempotencyError | CheckoutError) -> Story:
    """What an error means for the buyer; only an error that may pass offers to send the same order again."""
    if isinstance(problem, KeyReused):
        return Story(
            "This is not what you ordered before",
            "You changed the order after it had been sent. The first one stands as it is, and nothing of this one is "
            "ordered yet.",
            "Order this as well",
        )
    if problem.code == 409 and problem.retryable:
        return Story(
            "Your order is being processed",
            "It was sent a moment ago and has not been answered yet. Ask again to see how it went: it stays the same "
            "order.",
            "Ask again",
        )
    if problem.retryable:
        return Story(
            "We could not finish this right now",
            "Nothing was charged. Try again in a moment: it stays the same order, and you will not be charged twice.",
            "Try again",
        )
    if isinstance(problem, OutcomeUnknown | RecordUnreadable):
        return Story("We do not know how this order ended", "Please contact the shop before you order again.")
    return Story("This order did not go through", problem.detail)
