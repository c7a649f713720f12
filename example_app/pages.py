"""The pages that a buyer sees."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from flask import Blueprint, Response, make_response, render_template, request
from werkzeug.exceptions import InternalServerError, NotFound

from . import orders
from .catalog import CURRENCY, PRODUCTS, format_price
from .orders import Order, Status
from .purchase import MAX_QUANTITY

shop = Blueprint("shop", __name__)


class Wording(NamedTuple):
    """How a status is called on its badge, and what it means for the buyer."""

    label: str
    note: str


WORDINGS: Mapping[Status, Wording] = MappingProxyType(
    {
        Status.CREATED: Wording(
            "Not at the payment yet",
            "The order is written down, but its payment page is not there yet. Nothing was charged. "
            "Go back and press Buy again: this same order goes on.",
        ),
        Status.OPEN: Wording(
            "Waiting for payment",
            "No payment has reached us so far. This page follows along, and shows it a moment after it is made.",
        ),
        Status.PROCESSING: Wording(
            "Payment under way",
            "Thank you. Your bank takes its time; we pack your things when the money is here. Do not pay again.",
        ),
        Status.PAID: Wording("Paid", "Thank you. The payment arrived, once, and your things get packed."),
        Status.FAILED: Wording(
            "Payment failed", "The money did not arrive, and nothing was charged. You can order again."
        ),
        Status.EXPIRED: Wording(
            "Expired", "The payment page closed without a payment. Nothing was charged. You can order again."
        ),
        Status.HELD: Wording(
            "Needs attention",
            "A payment arrived that does not match this order, so we hold it. Please contact the shop.",
        ),
        Status.REFUNDING: Wording(
            "Refund under way",
            "Your refund is asked for. If this does not change, ask again:"
            " the money goes back once, however often you press.",
        ),
        Status.REFUNDED: Wording("Refunded", "Your money is on its way back to you."),
    }
)


@shop.get("/")
def show_catalog() -> str:
    """Show everything there is to buy."""
    return render_template("catalog.html", products=PRODUCTS.values())


@shop.get("/products/<slug>")
def show_product(slug: str) -> Response:
    """Show one product, with its Buy button.

    The page may be kept by the browser, and by nobody else: going back to it finds its form with the same
    idempotency key.
    """
    product = PRODUCTS.get(slug)
    if product is None:
        raise NotFound
    quantity = request.args.get("quantity", 1, type=int)
    page = make_response(
        render_template(
            "product.html",
            product=product,
            currency=CURRENCY,
            quantity=min(max(quantity, 1), MAX_QUANTITY),
            max_quantity=MAX_QUANTITY,
            cancelled=request.args.get("checkout") == "cancelled",
        )
    )
    page.headers["Cache-Control"] = "private, no-cache"
    return page


@shop.get("/orders/<order_id>")
def show_order(order_id: str) -> str:
    """Show an order and the status of its payment. Coming back from the payment page proves nothing: Stripe's events
    move an order, and nothing here does.
    """
    order = _find(order_id)
    return render_template("order.html", order=order, status=describe(order))


@shop.get("/orders/<order_id>.json")
def show_order_status(order_id: str) -> dict[str, Any]:
    """Return the status of an order, for its page to follow."""
    return describe(_find(order_id))


def describe(order: Order) -> dict[str, Any]:
    """Put an order's status into words."""
    wording = WORDINGS[order.state]
    return {
        "status": order.state.value,
        "label": wording.label,
        "note": wording.note,
        "final": order.state.final,
        "shipped": order.shipment is not None,
        "refundable": order.state in (Status.PAID, Status.REFUNDING),
        "session": order.session_id,
        "payment_url": order.session_url if order.state is Status.OPEN else None,
    }


def show_not_found(_error: NotFound) -> tuple[str, int]:
    """Answer 404 in the shop's own style."""
    return render_template("error.html", title="This page is not on the shelf", note="missing"), 404


def show_server_error(_error: InternalServerError) -> tuple[str, int]:
    """Answer 500 in the shop's own style; what went wrong is in the log."""
    return render_template("error.html", title="Something broke on our side", note="broken"), 500


def _find(order_id: str) -> Order:
    order = orders.find(order_id)
    if order is None:
        raise NotFound
    return order


shop.add_app_template_filter(format_price, "price")
