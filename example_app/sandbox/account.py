"""Everything one sandbox knows: sessions, events and who hears of them, idempotency keys, and waiting faults."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias, cast

from flask import current_app

from .courier import Attempt, Courier, Delivery
from .events import Event, EventLog, event_object, happenings
from .faults import FaultQueue
from .idempotency import KeyTable
from .sessions import Session, Sessions
from .webhooks import Endpoint, Endpoints

Kind: TypeAlias = Literal["executed", "replayed", "mismatched", "in_use", "refused", "lost"]
KINDS: tuple[Kind, ...] = ("executed", "replayed", "mismatched", "in_use", "refused", "lost")

EXTENSION = "stripe_sandbox"  # under this name an Account sits in app.extensions


class Account:
    """The state behind one sandbox. Safe to share between threads."""

    def __init__(
        self,
        clock: Callable[[], float],
        token: Callable[[int], str],
        base_url: str = "http://localhost",
        first_wait: float = 0.5,
    ) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        :param base_url: where the sandbox is reached, for the objects in its events.
        :param first_wait: seconds before an event that was not taken is delivered again.
        """
        self.clock = clock
        self.token = token
        self.sessions = Sessions(clock, token, self._changed)
        self.events = EventLog(clock, token)
        self.endpoints = Endpoints(clock, token)
        self.keys = KeyTable(clock)
        self.faults = FaultQueue()
        self.courier = Courier(
            first_wait=first_wait,
            done=self._delivered,
            wanted=self.endpoints.has,
            tick=self.sessions.all,  # which lets sessions expire whose time has come
        )
        self._base_url = base_url
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._counts: Counter[Kind] = Counter()
        self._attempts: list[Attempt] = []

    def count(self, kind: Kind) -> None:
        """Note that one more POST ended like this."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[Kind, int]:
        """Return how many POSTs to the API ended in which way.

        ``executed`` reached an outcome that is kept, errors 402 and 500 included; ``replayed`` got a kept
        outcome again; ``mismatched`` and ``in_use`` met a key that was taken; ``refused`` was turned away
        before it had any effect. ``lost`` counts, beside those, the answers that were dropped.
        """
        with self._lock:
            return {kind: self._counts[kind] for kind in KINDS}

    def attempts(self) -> list[Attempt]:
        """Return every try to deliver an event, in the order in which they ended."""
        with self._lock:
            return list(self._attempts)

    def deliver(self, event: Event) -> None:
        """Send an event to every endpoint that wants to hear of it, whether or not it has heard of it before."""
        body = json.dumps(event_object(event), indent=2).encode()
        for endpoint in self._listeners(event.type):
            self.courier.put(Delivery(event.id, event.type, body, endpoint))

    def pause(self, seconds: float) -> None:
        """Hang for so many seconds, or until the sandbox closes."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """End every pause at once, now and later, and deliver nothing more."""
        self._closing.set()
        self.courier.stop()

    def _changed(self, before: Session, after: Session) -> None:
        for kind, about in happenings(before, after, self._base_url):
            self.deliver(self.events.add(kind, about, pending=len(self._listeners(kind))))

    def _listeners(self, kind: str) -> list[Endpoint]:
        return [endpoint for endpoint in self.endpoints.all() if endpoint.wants(kind)]

    def _delivered(self, delivery: Delivery, attempt: Attempt) -> None:
        if attempt.taken:
            self.events.acknowledged(delivery.event_id)
        with self._lock:
            self._attempts.append(attempt)


def current_account() -> Account:
    """Return the account of the app that handles the current request."""
    return cast(Account, current_app.extensions[EXTENSION])
