"""From the buyer's JSON to the parameters of a Checkout Session, by way of an order in the database.

The request says what and how many; the server says what it costs. A refusal comes before anything is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flask import request, url_for

from flask_idempotent import CheckoutRefused, current_idempotency

from . import orders, payments
from .catalog import CURRENCY, PRODUCTS, Product
from .orders import Item, Order, Status

if TYPE_CHECKING:
    from stripe.checkout import Session

MAX_LINES = 100
MAX_QUANTITY = 20
MAX_URL = 2000  # characters

# Stripe forgets an idempotency key after 24 hours; a retry after that would open a second session for one order.
RESUMABLE_SECONDS = 23 * 60 * 60

OVER: Mapping[Status, str] = MappingProxyType(
    {
        Status.PROCESSING: "The payment of this order is under way. Press Buy again only if you want another one.",
        Status.PAID: "You have paid for this order already. Press Buy again only if you want another one.",
        Status.FAILED: "The payment of this order failed and nothing was charged. Press Buy again to start a new one.",
        Status.EXPIRED: "This checkout has expired and nothing was charged. Press Buy again to start a new one.",
        Status.HELD: "The payment of this order did not match it. Please contact the shop before you try again.",
        Status.REFUNDING: "The payment of this order is being refunded. Press Buy again to order anew.",
        Status.REFUNDED: "The payment of this order was refunded. Press Buy again to order anew.",
    }
)


@dataclass(frozen=True)
class Cart:
    """What a request asks for, checked: products with quantities, and where to go after a cancelled payment."""

    items: tuple[tuple[Product, int], ...]
    return_url: str | None


def session_params(payload: Any) -> dict[str, Any]:
    """Write the order, then return what Stripe needs to know for its Checkout Session.

    Every attempt under one idempotency key returns the same, for it is taken from the stored order.

    :param payload: the request's JSON: ``{"items": [{"product": slug, "quantity": 1..20}], "return_url": URL}``, the
        last of them optional.
    :raises CheckoutRefused: when the request cannot be served as it is, or its order is over.
    """
    cart = read_cart(payload, request.url_root)
    order = place(f"ord_{current_idempotency.derive('order')[:32]}", cart)
    over = OVER.get(payments.outlook(order))
    if over is not None:
        raise CheckoutRefused(over, field="items")
    if time.time() - order.created_at > RESUMABLE_SECONDS:
        raise CheckoutRefused("This checkout is too old to go on. Press Buy again to start a new one.", field="items")
    return params_of(order)


def remember_session(session: Session) -> None:
    """Note the Checkout Session on its order; noting it again changes nothing."""
    if session.client_reference_id is not None:
        orders.attach_session(session.client_reference_id, session.id, session.url)


def read_cart(payload: Any, shop_url: str) -> Cart:
    """Check what a request asks for.

    :param payload: the request's JSON, of any type.
    :param shop_url: the shop's own address; a return URL must have its scheme and host.
    :raises CheckoutRefused: with the field at fault and what it takes.
    """
    if not isinstance(payload, dict):
        raise CheckoutRefused('Send a JSON object such as {"items": [{"product": "…", "quantity": 1}]}.', field="items")
    _only_known(payload, ("items", "return_url"), "")
    lines = payload.get("items")
    if not isinstance(lines, list) or not 1 <= len(lines) <= MAX_LINES:
        raise CheckoutRefused(f"items takes a list of 1 to {MAX_LINES} lines.", field="items")
    items: dict[str, tuple[Product, int]] = {}
    for index, line in enumerate(lines):
        product, quantity = _read_line(line, f"items[{index}]")
        if product.slug in items:
            message = f"{product.name} is listed twice. Send one line with the total quantity."
            raise CheckoutRefused(message, field=f"items[{index}].product")
        items[product.slug] = (product, quantity)
    return Cart(tuple(items.values()), _read_return_url(payload, shop_url))


def place(order_id: str, cart: Cart) -> Order:
    """Write the order of a cart and commit it, or return the one that an earlier attempt wrote."""
    first, quantity = cart.items[0]
    return orders.insert_or_get(
        order_id,
        [Item(product.slug, product.name, product.tagline, product.price, count) for product, count in cart.items],
        currency=CURRENCY,
        success_url=url_for("shop.show_order", order_id=order_id, _external=True),
        cancel_url=cart.return_url
        or url_for("shop.show_product", slug=first.slug, quantity=quantity, checkout="cancelled", _external=True),
        now=time.time(),
    )


def params_of(order: Order) -> dict[str, Any]:
    """Return the parameters of an order's Checkout Session, from nothing but the stored order."""
    return {
        "mode": "payment",
        "client_reference_id": order.id,
        "metadata": {"order_id": order.id},
        "success_url": order.success_url,
        "cancel_url": order.cancel_url,
        "line_items": [
            {
                "quantity": line.quantity,
                "price_data": {
                    "currency": order.currency,
                    "unit_amount": line.unit_amount,
                    "product_data": {"name": line.name, "description": line.description},
                },
            }
            for line in order.lines
        ],
    }


def _read_line(line: Any, field: str) -> tuple[Product, int]:
    if not isinstance(line, dict):
        raise CheckoutRefused(f'{field} takes an object such as {{"product": "…", "quantity": 1}}.', field=field)
    _only_known(line, ("product", "quantity"), f"{field}.")
    slug, quantity = line.get("product"), line.get("quantity")
    product = PRODUCTS.get(slug) if isinstance(slug, str) else None
    if product is None:
        raise CheckoutRefused("There is no such product. Choose one from the shop.", field=f"{field}.product")
    if type(quantity) is not int or not 1 <= quantity <= MAX_QUANTITY:  # a bool is an int, too
        message = f"The quantity takes a whole number from 1 to {MAX_QUANTITY}."
        raise CheckoutRefused(message, field=f"{field}.quantity")
    return product, quantity


def _only_known(fields: dict[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for name in fields:
        if name not in known:
            message = f"Leave this field out: only {' and '.join(known)} are taken here, and prices are the shop's."
            raise CheckoutRefused(message, field=f"{prefix}{name}"[:200])


def _read_return_url(payload: dict[str, Any], shop_url: str) -> str | None:
    if "return_url" not in payload:
        return None
    url = payload["return_url"]
    if not isinstance(url, str) or len(url) > MAX_URL or not _same_origin(url, shop_url):
        message = f"return_url takes a page of this shop: a URL that begins with {shop_url}"
        raise CheckoutRefused(message, field="return_url")
    return url


def _same_origin(url: str, shop_url: str) -> bool:
    # Browsers read a backslash as a slash and drop control characters; urlsplit does not see it their way.
    if "\\" in url or not all("!" <= character <= "~" for character in url):
        return False
    try:
        parts, shop = urlsplit(url), urlsplit(shop_url)
    except ValueError:
        return False
    return (parts.scheme, parts.netloc) == (shop.scheme, shop.netloc)
