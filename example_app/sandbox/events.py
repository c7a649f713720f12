"""What happened in the account, as Stripe's events: which change makes which, and the log that keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .errors import no_such
from .fields import EVENT_FIELDS, complete
from .objects import session_object
from .payment_objects import charge_object, payment_intent_object, refund_object
from .payments import FAILED, PROCESSING, SUCCEEDED, Payment
from .sessions import EXPIRED, Session

API_VERSION = "2026-10-28.endive"

# The events of a payment that comes into a state, in Stripe's order; the first part of a name says of which object.
BY_PAYMENT: dict[tuple[str | None, str], tuple[str, ...]] = {
    (None, SUCCEEDED): ("charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"),
    (None, PROCESSING): ("payment_intent.processing", "checkout.session.completed"),
    (PROCESSING, SUCCEEDED): (
        "charge.succeeded",
        "payment_intent.succeeded",
        "checkout.session.async_payment_succeeded",
    ),
    (PROCESSING, FAILED): (
        "charge.failed",
        "payment_intent.payment_failed",
        "checkout.session.async_payment_failed",
    ),
}


@dataclass(frozen=True)
class Event:
    """Something that happened. ``created`` is in seconds since the epoch.

    :ivar about: the object as it was then, as the API shows it.
    :ivar pending: how many endpoints are still to acknowledge it.
    """

    id: str
    type: str
    created: int
    about: dict[str, Any]
    pending: int = 0


def happenings(before: Session, after: Session, base_url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Say what a change of a session means: types of events with the objects that they are about.

    :param base_url: as for :func:`session_object`.
    """
    if after.status == EXPIRED != before.status:
        yield "checkout.session.expired", session_object(after, base_url)
    payment = after.payment
    if payment is None:
        return
    earlier = before.payment.status if before.payment else None
    for kind in BY_PAYMENT.get((earlier, payment.status), ()):
        yield kind, _object(kind, after, payment, base_url)
    for refund in payment.refunds[len(before.payment.refunds) if before.payment else 0 :]:
        yield "refund.created", refund_object(after, payment, refund)
        yield "charge.refunded", charge_object(after, payment)


def _object(kind: str, session: Session, payment: Payment, base_url: str) -> dict[str, Any]:
    if kind.startswith("charge."):
        return charge_object(session, payment)
    if kind.startswith("payment_intent."):
        return payment_intent_object(session, payment)
    return session_object(session, base_url)


def event_object(event: Event) -> dict[str, Any]:
    """Return the ``event`` object."""
    filled = {
        "id": event.id,
        "object": "event",
        "api_version": API_VERSION,
        "created": event.created,
        "data": {"object": event.about},
        "livemode": False,
        "pending_webhooks": event.pending,
        "request": {"id": None, "idempotency_key": None},
        "type": event.type,
    }
    return complete(EVENT_FIELDS, filled)


class EventLog:
    """Every event of the account, oldest first. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float], token: Callable[[int], str]) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        """
        self._clock = clock
        self._token = token
        self._lock = threading.Lock()
        self._events: dict[str, Event] = {}

    def add(self, kind: str, about: dict[str, Any], pending: int) -> Event:
        """Note that something happened, and return it as an event; ``pending`` endpoints are to hear of it."""
        event = Event(f"evt_{self._token(12)}", kind, int(self._clock()), about, pending)
        with self._lock:
            self._events[event.id] = event
        return event

    def acknowledged(self, event_id: str) -> None:
        """Note that one more endpoint has taken an event."""
        with self._lock:
            event = self._events[event_id]
            self._events[event_id] = replace(event, pending=max(event.pending - 1, 0))

    def get(self, event_id: str) -> Event:
        """Return an event, or raise a 404 ApiError."""
        with self._lock:
            event = self._events.get(event_id)
        if event is None:
            raise no_such("event", event_id)
        return event

    def all(self) -> list[Event]:
        """Return every event, oldest first."""
        with self._lock:
            return list(self._events.values())
