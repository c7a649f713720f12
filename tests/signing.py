"""Events and signatures as Stripe makes them, written by its documentation and not with its library."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from typing import Any

SECRET = "whsec_test"


def event(kind: str = "checkout.session.completed", event_id: str = "evt_1", **about: Any) -> dict[str, Any]:
    """An event about an object with these members."""
    return {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": int(time.time()),
        "data": {"object": {"id": "cs_test_1", "object": "checkout.session", **about}},
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": kind,
    }


def signature(body: bytes, secret: str = SECRET, at: float | None = None, scheme: str = "v1") -> str:
    """https://docs.stripe.com/webhooks#verify-manually: HMAC-SHA256 over the time, a full stop and the body."""
    moment = int(time.time() if at is None else at)
    return f"t={moment},{scheme}={_mac(moment, body, secret)}"


def _mac(moment: int, body: bytes, secret: str) -> str:
    return hmac.new(secret.encode(), b"%d.%s" % (moment, body), hashlib.sha256).hexdigest()


def delivery(event: dict[str, Any], **how: Any) -> dict[str, Any]:
    """The body and the headers of a delivery, as keywords for a client's ``post``."""
    body = json.dumps(event, indent=2).encode()
    headers = {"Content-Type": "application/json; charset=utf-8", "Stripe-Signature": signature(body, **how)}
    return {"data": body, "headers": headers}
