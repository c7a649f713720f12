"""Sessions and lines as the JSON objects of Stripe's API, with every field that the client declares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .fields import SESSION_FIELDS, complete
from .payment_objects import payment_intent_object
from .sessions import OPEN, Line, Session

EXPANDABLE = frozenset({"line_items", "payment_intent", "payment_intent.latest_charge"})
CUSTOM_TEXTS = ("after_submit", "shipping_address", "submit", "terms_of_service_acceptance")


def session_object(session: Session, base_url: str, expand: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the ``checkout.session`` object.

    :param session: the session to show.
    :param base_url: where the sandbox is reached, without a slash at the end; the hosted page is below it.
    :param expand: the fields to fill in whole, some of :data:`EXPANDABLE`.
    """
    new = session.new
    filled = {
        "id": session.id,
        "object": "checkout.session",
        "amount_subtotal": new.amount,
        "amount_total": new.amount,
        "cancel_url": new.cancel_url,
        "client_reference_id": new.client_reference_id,
        "created": session.created,
        "currency": new.currency,
        "customer_email": new.customer_email,
        "expires_at": new.expires_at,
        "livemode": False,
        "locale": new.locale,
        "metadata": dict(new.metadata),
        "mode": "payment",
        "payment_intent": session.payment_intent,
        "payment_status": "paid" if session.paid else "unpaid",
        "status": session.status,
        "submit_type": new.submit_type,
        "success_url": new.success_url,
        "ui_mode": "hosted_page",
        "url": f"{base_url}/pay/{session.id}" if session.status == OPEN else None,
        **_defaults(),
    }
    if "line_items" in expand:
        filled["line_items"] = line_list(session, session.lines, has_more=False)
    if session.payment is not None and any(name.startswith("payment_intent") for name in expand):
        with_charge = "payment_intent.latest_charge" in expand
        filled["payment_intent"] = payment_intent_object(session, session.payment, with_charge=with_charge)
    return complete(SESSION_FIELDS, filled)


def line_list(session: Session, lines: Sequence[Line], *, has_more: bool) -> dict[str, Any]:
    """Return one page of a session's lines as a ``list`` object."""
    return {
        "object": "list",
        "data": [_line_object(session, line) for line in lines],
        "has_more": has_more,
        "url": f"/v1/checkout/sessions/{session.id}/line_items",
    }


def _defaults() -> dict[str, Any]:
    """Return the values of fields that are never null, for a plain payment by card."""
    return {
        "adaptive_pricing": {"enabled": False},
        "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
        "custom_fields": [],
        "custom_text": dict.fromkeys(CUSTOM_TEXTS),
        "customer_creation": "if_required",
        "payment_method_collection": "if_required",
        "payment_method_options": {},
        "payment_method_types": ["card"],
        "phone_number_collection": {"enabled": False},
        "shipping_options": [],
        "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
    }


def _line_object(session: Session, line: Line) -> dict[str, Any]:
    amount, currency = line.new.amount, session.new.currency
    return {
        "id": line.id,
        "object": "item",
        "adjustable_quantity": None,
        "amount_discount": 0,
        "amount_subtotal": amount,
        "amount_tax": 0,
        "amount_total": amount,
        "currency": currency,
        "description": line.new.name,
        "discounts": None,
        "metadata": {},
        "price": _price_object(session, line),
        "quantity": line.new.quantity,
        "taxes": None,
    }


def _price_object(session: Session, line: Line) -> dict[str, Any]:
    return {
        "id": line.price_id,
        "object": "price",
        "active": False,
        "billing_scheme": "per_unit",
        "created": session.created,
        "currency": session.new.currency,
        "custom_unit_amount": None,
        "livemode": False,
        "lookup_key": None,
        "metadata": {},
        "nickname": None,
        "product": line.product_id,
        "recurring": None,
        "tax_behavior": "unspecified",
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time",
        "unit_amount": line.new.unit_amount,
        "unit_amount_decimal": str(line.new.unit_amount),
    }
