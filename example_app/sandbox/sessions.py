"""Checkout Sessions and their lives: open, then complete or expired. Pure state, no HTTP and no JSON."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from .errors import ApiError, invalid, no_such
from .params import NewLine, NewSession
from .payments import FAILED, PROCESSING, SUCCEEDED, NewRefund, Payment, Refund

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
    payment: Payment | None = None

    @property
    def paid(self) -> bool:
        """Whether the money has arrived."""
        return self.payment is not None and self.payment.status == SUCCEEDED

    @property
    def payment_intent(self) -> str | None:
        """The id of its PaymentIntent; None before the buyer has pressed the button."""
        return self.payment.intent_id if self.payment else None


class Sessions:
    """Every session of the account, oldest first. Safe to share between threads.

    All changes of state go through :meth:`_change`, under one lock, and are told in the order in which they happen.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        token: Callable[[int], str],
        changed: Callable[[Session, Session], None],
    ) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        :param changed: told of each change as a session before and after it; must not ask for sessions itself.
        """
        self._clock = clock
        self._token = token
        self._changed = changed
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
        """Return every session as it is now, oldest first. Those whose time has come expire by this."""
        with self._lock:
            session_ids = list(self._sessions)
        return [self.get(session_id) for session_id in session_ids]

    def of_payment(self, payment_id: str, param: str) -> tuple[Session, Payment]:
        """Return a payment by the id of its PaymentIntent or Charge, with its session, or raise a 404 ApiError.

        :param payment_id: the id of either.
        :param param: what the request calls it, for the error.
        """
        for session in self.all():
            if session.payment and payment_id in (session.payment.intent_id, session.payment.charge_id):
                return session, session.payment
        raise no_such(param, payment_id)

    def pay(self, session_id: str) -> Session:
        """Take the payment of an open session by card, once; a session that is over comes back as it is."""
        return self._complete(session_id, "card", SUCCEEDED)

    def transfer(self, session_id: str) -> Session:
        """Complete an open session by a bank transfer, whose money is still on its way."""
        return self._complete(session_id, "customer_balance", PROCESSING)

    def settle(self, session_id: str, *, arrived: bool) -> Session:
        """Let the money of a transfer arrive, or not; a session without one under way comes back as it is."""

        def settled(session: Session) -> Session:
            if session.payment is None or session.payment.status != PROCESSING:
                return session
            return replace(session, payment=replace(session.payment, status=SUCCEEDED if arrived else FAILED))

        return self._change(session_id, settled)

    def refund(self, new: NewRefund) -> tuple[Session, Payment, Refund]:
        """Send money back; returns the refund, with the payment and its session as they are afterwards.

        :raises ApiError: 404 for an unknown payment, 400 when it did not succeed or less than that is left of it.
        """

        def refunded(session: Session) -> Session:
            payment, total = session.payment, session.new.amount
            if payment is None or payment.status != SUCCEEDED:
                raise invalid("payment_intent", "This payment did not succeed, so there is nothing to refund.")
            left = total - payment.refunded
            if left == 0:
                raise invalid("payment_intent", "This charge has already been refunded.", "charge_already_refunded")
            amount = left if new.amount is None else new.amount
            if amount > left:
                raise invalid("amount", f"Only {left} of this charge are left to refund, in minor units.")
            refund = Refund(f"re_{self._token(12)}", amount, int(self._clock()), new)
            return replace(session, payment=replace(payment, refunds=(*payment.refunds, refund)))

        session = self._change(self.of_payment(new.payment, "payment_intent")[0].id, refunded)
        payment = cast(Payment, session.payment)
        return session, payment, payment.refunds[-1]

    def expire(self, session_id: str) -> Session:
        """End an open session before its time; raises a 400 ApiError when it is not open."""

        def expired(session: Session) -> Session:
            if session.status != OPEN:
                message = f"Only open Checkout Sessions can be expired; this one is {session.status}."
                raise ApiError(400, message, param="session")
            return replace(session, status=EXPIRED)

        return self._change(session_id, expired)

    def _complete(self, session_id: str, method: str, status: str) -> Session:
        def completed(session: Session) -> Session:
            if session.status != OPEN:
                return session
            ids = f"pi_{self._token(12)}", f"ch_{self._token(12)}"
            return replace(session, status=COMPLETE, payment=Payment(*ids, int(self._clock()), method, status))

        return self._change(session_id, completed)

    def _change(self, session_id: str, change: Callable[[Session], Session]) -> Session:
        with self._lock:
            before = self._sessions.get(session_id)
            if before is None:
                raise no_such("session", session_id)
            if before.status == OPEN and self._clock() >= before.new.expires_at:
                before = self._put(before, replace(before, status=EXPIRED))
            return self._put(before, change(before))

    def _put(self, before: Session, after: Session) -> Session:
        if after is not before:
            self._sessions[after.id] = after
            self._changed(before, after)
        return after
