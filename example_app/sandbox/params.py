"""The parameters of new Checkout Sessions and refunds, checked as Stripe checks them before anything executes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from .errors import invalid, missing
from .forms import Node, Tree, as_list, as_map, as_text
from .payments import NewRefund

SESSION_PARAMS = frozenset({
    "cancel_url", "client_reference_id", "customer_email", "expand", "expires_at", "line_items", "locale",
    "metadata", "mode", "submit_type", "success_url", "ui_mode",
})  # fmt: skip
REFUND_PARAMS = frozenset({"amount", "charge", "expand", "metadata", "payment_intent", "reason"})
REFUND_REASONS = ("duplicate", "fraudulent", "requested_by_customer")
LINE_PARAMS = frozenset({"price_data", "quantity"})
PRICE_PARAMS = frozenset({"currency", "product_data", "unit_amount"})
PRODUCT_PARAMS = frozenset({"description", "images", "metadata", "name"})

MAX_LINES = 100
MAX_AMOUNT = 99_999_999  # minor units; Stripe takes eight digits
MAX_QUANTITY = 999_999
MAX_METADATA = 50
MIN_LIFETIME = 30 * 60  # seconds
MAX_LIFETIME = 24 * 60 * 60  # seconds
_CURRENCY = re.compile(r"[a-z]{3}")
_INTEGER = re.compile(r"-?[0-9]{1,18}")


@dataclass(frozen=True)
class NewLine:
    """One line of a session; amounts are in minor units of the session's currency."""

    name: str
    description: str | None
    unit_amount: int
    quantity: int

    @property
    def amount(self) -> int:
        """The line's total in minor units."""
        return self.unit_amount * self.quantity


@dataclass(frozen=True)
class NewSession:
    """What a session is created from. Times are whole seconds since the epoch."""

    lines: tuple[NewLine, ...]
    currency: str
    success_url: str
    expires_at: int
    cancel_url: str | None = None
    client_reference_id: str | None = None
    customer_email: str | None = None
    locale: str | None = None
    submit_type: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def amount(self) -> int:
        """The total of all lines in minor units."""
        return sum(line.amount for line in self.lines)


def read_new_session(form: Tree, now: float) -> NewSession:
    """Check the decoded parameters of ``POST /v1/checkout/sessions``.

    :param form: the decoded form.
    :param now: the time in seconds since the epoch.
    :raises ApiError: 400 that names the parameter and what it takes.
    """
    as_map(form, "", SESSION_PARAMS)
    _only(form, "mode", "payment", required=True)
    _only(form, "ui_mode", "hosted_page")
    lines, currency = _lines(form)
    success_url = _url(form, "success_url")
    if success_url is None:
        raise missing("success_url")
    return NewSession(
        lines=lines,
        currency=currency,
        success_url=success_url,
        expires_at=_expires_at(form, now),
        cancel_url=_url(form, "cancel_url"),
        client_reference_id=_optional(form, "client_reference_id", 200),
        customer_email=_optional(form, "customer_email", 512),
        locale=_optional(form, "locale", 10),
        submit_type=_optional(form, "submit_type", 20),
        metadata=_metadata(form),
    )


def read_new_refund(form: Tree) -> NewRefund:
    """Check the decoded parameters of ``POST /v1/refunds``; raises a 400 ApiError that names the parameter."""
    as_map(form, "", REFUND_PARAMS)
    payment = _optional(form, "payment_intent", 255) or _optional(form, "charge", 255)
    if payment is None:
        raise missing("payment_intent")
    reason = _optional(form, "reason", 40)
    if reason is not None and reason not in REFUND_REASONS:
        raise invalid("reason", f"Invalid reason: send one of {', '.join(REFUND_REASONS)}.")
    amount = _integer(form["amount"], "amount", 1, MAX_AMOUNT) if form.get("amount") else None
    return NewRefund(payment, amount, reason, _metadata(form))


def _only(form: Tree, param: str, value: str, *, required: bool = False) -> None:
    if not form.get(param):
        if required:
            raise missing(param)
    elif form[param] != value:
        raise invalid(param, f"The sandbox knows {param}={value} only.")


def _optional(form: Tree, param: str, max_length: int) -> str | None:
    return as_text(form[param], param, max_length) if form.get(param) else None


def _url(form: Tree, param: str) -> str | None:
    url = _optional(form, param, 5000)
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.netloc or not url.isprintable() or " " in url:
        raise invalid(param, f"Not a valid URL: {param} takes an absolute http or https URL.", "url_invalid")
    return url


def _integer(node: Node, param: str, low: int, high: int) -> int:
    if not isinstance(node, str) or not _INTEGER.fullmatch(node):
        raise invalid(param, f"Invalid integer: {param} takes a whole number.", "parameter_invalid_integer")
    if not low <= int(node) <= high:
        raise invalid(param, f"Invalid integer: {param} takes {low} to {high}.", "parameter_invalid_integer")
    return int(node)


def _lines(form: Tree) -> tuple[tuple[NewLine, ...], str]:
    if not form.get("line_items"):
        raise missing("line_items")
    nodes = as_list(form["line_items"], "line_items")
    if len(nodes) > MAX_LINES:
        raise invalid("line_items", f"line_items takes at most {MAX_LINES} entries.")
    pairs = [_line(node, f"line_items[{index}]") for index, node in enumerate(nodes)]
    currencies = {currency for _, currency in pairs}
    if len(currencies) > 1:
        raise invalid("line_items", "All line items must have the same currency.")
    return tuple(line for line, _ in pairs), currencies.pop()


def _line(node: Node, param: str) -> tuple[NewLine, str]:
    line = as_map(node, param, LINE_PARAMS)
    for required in ("price_data", "quantity"):
        if required not in line:
            raise missing(f"{param}[{required}]")
    at = f"{param}[price_data]"
    price = as_map(line["price_data"], at, PRICE_PARAMS)
    for required in ("currency", "product_data", "unit_amount"):
        if not price.get(required):
            raise missing(f"{at}[{required}]")
    currency = as_text(price["currency"], f"{at}[currency]", 3).lower()
    if not _CURRENCY.fullmatch(currency):
        raise invalid(f"{at}[currency]", "Invalid currency: send a three-letter ISO 4217 code.")
    name, description = _product(price["product_data"], f"{at}[product_data]")
    return NewLine(
        name=name,
        description=description,
        unit_amount=_integer(price["unit_amount"], f"{at}[unit_amount]", 1, MAX_AMOUNT),
        quantity=_integer(line["quantity"], f"{param}[quantity]", 1, MAX_QUANTITY),
    ), currency


def _product(node: Node, param: str) -> tuple[str, str | None]:
    product = as_map(node, param, PRODUCT_PARAMS)
    if not product.get("name"):
        raise missing(f"{param}[name]")
    description = product.get("description")
    return (
        as_text(product["name"], f"{param}[name]", 250),
        as_text(description, f"{param}[description]", 5000) if description else None,
    )


def _metadata(form: Tree) -> dict[str, str]:
    if not form.get("metadata"):
        return {}
    entries = as_map(form["metadata"], "metadata")
    if len(entries) > MAX_METADATA or any(len(name) > 40 for name in entries):
        raise invalid("metadata", f"metadata takes at most {MAX_METADATA} names of at most 40 characters.")
    return {name: as_text(value, f"metadata[{name}]", 500) for name, value in entries.items()}


def _expires_at(form: Tree, now: float) -> int:
    if not form.get("expires_at"):
        return int(now) + MAX_LIFETIME
    # Stripe's own bounds are inclusive and its clock is not ours: be exact to the second, no more.
    earliest, latest = int(now) + MIN_LIFETIME, int(now) + MAX_LIFETIME
    return _integer(form["expires_at"], "expires_at", earliest, latest)
