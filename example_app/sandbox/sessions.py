"""Checkout Sessions and their lives: open, then complete or expired. Pure state, no HTTP and no JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from .errors import ApiError, no_such_session
from .params import NewLine, NewSession

OPEN, COMPLETE, EXPIRED = "open", "complete", "expired"


@dataclass(frozen=True)
class Line:
    """A line of a session with the ids that Stripe gives to it, its price and its product."""

    id: str
    price_id: str
    product_id: str
    new: NewLine


@dataclass(frozen=True)
class Session:
    """A session at one moment; a change makes another value. ``created`` is in seconds since the epoch."""

    id: str
    created: int
    new: NewSession
    lines: tuple[Line, ...]
    status: str = OPEN
    payment_intent: str | None = None

    @property
    def paid(self) -> bool:
        """Whether the buyer has paid."""
        return self.payment_intent is not None


class Sessions:
    """Every session of the account, oldest first. Safe to share between threads.

    All changes of state go through :meth:`_change`, under one lock: the place from which events can be sent
    once there are webhooks.
    """

    def __init__(self, clock: Callable[[], float], token: Callable[[int], str]) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        """
        self._clock = clock
        self._token = token
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def create(self, new: NewSession) -> Session:
        """Open a session and return it."""
        lines = tuple(
            Line(f"li_{self._token(12)}", f"price_{self._token(12)}", f"prod_{self._token(7)}", line)
            for line in new.lines
        )
        session = Session(f"cs_test_{self._token(29)}", int(self._clock()), new, lines)
        with self._lock:
            self._sessions[session.id] = session
        return session

    def get(self, session_id: str) -> Session:
        """Return the session as it is now, or raise a 404 ApiError."""
        return self._change(session_id, lambda session: session)

    def all(self) -> list[Session]:
        """Return every session as it is now, oldest first."""
        with self._lock:
            session_ids = list(self._sessions)
        return [self.get(session_id) for session_id in session_ids]

    def pay(self, session_id: str) -> Session:
        """Take the payment of an open session once; a session that is over comes back as it is."""

        def paid(session: Session) -> Session:
            if session.status != OPEN:
                return session
            return replace(session, status=COMPLETE, payment_intent=f"pi_{self._token(12)}")

        return self._change(session_id, paid)

    def expire(self, session_id: str) -> Session:
        """End an open session before its time; raises a 400 ApiError when it is not open."""

        def expired(session: Session) -> Session:
            if session.status != OPEN:
                message = f"Only open Checkout Sessions can be expired; this one is {session.status}."
                raise ApiError(400, message, param="session")
            return replace(session, status=EXPIRED)

        return self._change(session_id, expired)

    def _change(self, session_id: str, change: Callable[[Session], Session]) -> Session:
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                raise no_such_session(session_id)
            if session.status == OPEN and self._clock() >= session.new.expires_at:
                session = replace(session, status=EXPIRED)
            self._sessions[session_id] = changed = change(session)
            return changed
