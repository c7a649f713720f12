"""How one process stands with its Redis: whether it is there, can be trusted, and knows what it should know."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ..core.store import Claim, StoreError
from .breaker import Breaker
from .early import EarlyOutcome
from .recovery import GRACE_SECONDS, Recovery

Answer = TypeVar("Answer")


class NotAsked(StoreError):
    """Redis is known to be away, or not to be trusted yet: nothing was sent to it, or it was given back."""


@dataclass(frozen=True, slots=True)
class Contact:
    """The contact of one process. A forked one has a contact, and locks and a thread, of its own.

    :param indebted: running claims of the process that Redis may not know as they are.
    :param meeting: held while the servers are asked who they are.
    :param missed: keys of which Redis knows the outcome, and the local tier could not be told.
    :param undone: outcomes that were written early, and could not be taken back.
    """

    breaker: Breaker
    recovery: Recovery
    indebted: set[bytes] = field(default_factory=set)
    missed: set[str] = field(default_factory=set)
    undone: set[EarlyOutcome] = field(default_factory=set)
    meeting: threading.Lock = field(default_factory=lambda: threading.Lock())  # gevent's, where it has patched since

    @property
    def is_established(self) -> bool:
        """Whether a claim can be made without further ado: the servers are known, and watched."""
        breaker = self.breaker
        return breaker.prober is not None and not breaker.is_open and self.recovery.is_acquainted

    def establish(self) -> StoreError | None:
        """Know the servers before the first word that is spoken for them, and again when a connection is new.

        :return: why that was not possible; None also where Redis is known to be away.
        """
        self.breaker.watch()
        if self.breaker.is_open:
            return None
        try:
            self.know_servers()
        except StoreError as error:
            return error
        return None

    def know_servers(self) -> None:
        """Find out whether the servers are still the same, unless no connection was made since that was last known.

        :raises StoreError: they do not answer.
        """
        if self.recovery.is_acquainted:
            return
        with self.meeting:  # who has waited for another one's answer knows whether there was one
            if not self.recovery.is_acquainted and self.ask(self.recovery.meet):
                self.breaker.probe()

    def wait_for_others(self, error: type[StoreError]) -> None:
        """For a route that must not run twice: it does not trust a Redis that was away until other hosts could tell it
        what they hold.

        :raises StoreError: it was away a moment ago.
        """
        trusted_from = max(self.breaker.ended + GRACE_SECONDS, self.recovery.trusted_from)
        if self.recovery.lacks_latest or time.monotonic() < trusted_from:
            raise error("Redis was away until a moment ago", outage=True)

    def ask(self, call: Callable[..., Answer], *args: Any) -> Answer:
        """Redis's answer.

        :raises StoreError: it has none, or is known to be away and was not asked.
        """
        breaker = self.breaker
        if breaker.is_open:
            breaker.probe()
            raise NotAsked(breaker.reason or "Redis is away", outage=True)
        try:
            answer = call(*args)
        except StoreError as error:
            if error.outage:
                breaker.failed(error)
            raise
        if breaker.failures:
            breaker.succeeded()
        return answer

    def tell(self, call: Callable[..., Answer], *args: Any) -> tuple[Answer] | None:
        """Redis's answer, or None where it could not be told and will have to be."""
        try:
            return (self.ask(call, *args),)
        except StoreError:
            self.breaker.probe()
            return None

    def owes(self, claim: Claim, told: tuple[Any] | None) -> bool:
        """Whether Redis will have to be told how things stand here: it could not be now, or the probe may be writing an
        older state at this moment.

        :param told: what :meth:`tell` has returned.
        """
        if told is None:
            self.indebted.add(claim.owner)
        return claim.owner in self.indebted
