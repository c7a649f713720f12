"""What Redis has missed while it was away, by key."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ..core.store import Claim

DROP_SECONDS: Final = 1.0  # between two looks for what has expired


@dataclass(frozen=True, slots=True, eq=False)
class Debt:
    """What Redis has missed under one key. Each change makes a new debt, so that none is settled by an older one.

    :param claims: those of this process that Redis may know by now, the latest last; none for a plain value.
    :param expires: when nothing of it can be left anywhere, in monotonic seconds.
    """

    claims: tuple[Claim, ...]
    expires: float


class Debts:
    """The debts of one process, safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_key: dict[str, Debt] = {}
        self._next_drop = 0.0

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def note(self, key: str, claims: tuple[Claim, ...], ttl_ms: int = 0) -> tuple[Debt, Debt | None]:
        """Owe the state of a key from now on; what was owed for it before is owed still.

        :param claims: whose state it is; none for a plain value.
        :param ttl_ms: for how long the state counts, where that is longer than the claims' own terms.
        :return: the debt, and the one that it has replaced.
        """
        with self._lock:
            earlier = self._by_key.get(key)
            known = {each.owner: each for each in (*(earlier.claims if earlier else ()), *claims)}
            kept_ms = max(ttl_ms, 0, *(max(each.terms.ttl_ms, each.terms.lease_ms) for each in known.values()))
            debt = self._by_key[key] = Debt(tuple(known.values()), time.monotonic() + kept_ms / 1000)
            self._drop_expired()
            return debt, earlier

    def paid(self, key: str, debt: Debt) -> bool:
        """Redis has it now; False where the key has changed meanwhile."""
        with self._lock:
            if self._by_key.get(key) is not debt:
                return False
            del self._by_key[key]
            return True

    def undo(self, key: str, debt: Debt, earlier: Debt | None) -> None:
        """Nothing has changed after all: what was owed before is owed still."""
        self.paid(key, debt)
        if earlier is not None:
            with self._lock:
                self._by_key.setdefault(key, earlier)

    def besides(self, tried: Mapping[str, Debt]) -> list[tuple[str, Debt]]:
        """The debts that are not among those already tried."""
        with self._lock:
            return [(key, debt) for key, debt in self._by_key.items() if tried.get(key) is not debt]

    def _drop_expired(self) -> None:
        """In a long outage, forget what has expired; hold the lock."""
        now = time.monotonic()
        if now < self._next_drop:
            return
        self._next_drop = now + DROP_SECONDS
        for key in [key for key, debt in self._by_key.items() if debt.expires < now]:
            del self._by_key[key]
