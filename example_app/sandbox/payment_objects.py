"""Payments and refunds as the JSON objects of Stripe's API."""

from __future__ import annotations

from typing import Any

from .fields import CHARGE_FIELDS, PAYMENT_INTENT_FIELDS, REFUND_FIELDS, complete
from .payments import FAILED, PROCESSING, SUCCEEDED, Payment, Refund
from .sessions import Session

INTENT_STATUS = {PROCESSING: "processing", SUCCEEDED: "succeeded", FAILED: "requires_payment_method"}
CHARGE_STATUS = {PROCESSING: "pending", SUCCEEDED: "succeeded", FAILED: "failed"}
FAILURE = {"code": "payment_intent_payment_attempt_failed", "message": "The transfer did not arrive."}


def payment_intent_object(session: Session, payment: Payment, *, with_charge: bool = False) -> dict[str, Any]:
    """Return the ``payment_intent`` object of a session's payment.

    :param with_charge: whether ``latest_charge`` is filled in, as ``expand`` asks.
    """
    arrived = payment.status == SUCCEEDED
    filled = {
        "id": payment.intent_id,
        "object": "payment_intent",
        "amount": session.new.amount,
        "amount_capturable": 0,
        "amount_received": session.new.amount if arrived else 0,
        "capture_method": "automatic_async",
        "client_secret": f"{payment.intent_id}_secret_sandbox",
        "confirmation_method": "automatic",
        "created": payment.created,
        "currency": session.new.currency,
        "last_payment_error": {"type": "api_error", **FAILURE} if payment.status == FAILED else None,
        "latest_charge": charge_object(session, payment) if with_charge else payment.charge_id,
        "livemode": False,
        "metadata": {},
        "payment_method_types": [payment.method],
        "status": INTENT_STATUS[payment.status],
    }
    return complete(PAYMENT_INTENT_FIELDS, filled)


def charge_object(session: Session, payment: Payment) -> dict[str, Any]:
    """Return the ``charge`` object of a session's payment. Its refunds are not listed, as in Stripe's answers."""
    arrived, failed = payment.status == SUCCEEDED, payment.status == FAILED
    filled = {
        "id": payment.charge_id,
        "object": "charge",
        "amount": session.new.amount,
        "amount_captured": session.new.amount if arrived else 0,
        "amount_refunded": payment.refunded,
        "billing_details": dict.fromkeys(("address", "email", "name", "phone", "tax_id")),
        "captured": arrived,
        "created": payment.created,
        "currency": session.new.currency,
        "disputed": False,
        "failure_code": FAILURE["code"] if failed else None,
        "failure_message": FAILURE["message"] if failed else None,
        "fraud_details": {},
        "livemode": False,
        "metadata": {},
        "paid": arrived,
        "payment_intent": payment.intent_id,
        "payment_method_details": {"type": payment.method},
        "refunded": payment.refunded == session.new.amount,
        "status": CHARGE_STATUS[payment.status],
    }
    return complete(CHARGE_FIELDS, filled)


def refund_object(session: Session, payment: Payment, refund: Refund) -> dict[str, Any]:
    """Return the ``refund`` object."""
    filled = {
        "id": refund.id,
        "object": "refund",
        "amount": refund.amount,
        "charge": payment.charge_id,
        "created": refund.created,
        "currency": session.new.currency,
        "destination_details": {"type": payment.method, payment.method: {}},
        "metadata": dict(refund.new.metadata),
        "payment_intent": payment.intent_id,
        "reason": refund.new.reason,
        "status": "succeeded",
    }
    return complete(REFUND_FIELDS, filled)
