"""No local tier: Redis alone decides, and remembers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..core.store import FIRST, Claim, Claimed, Found, Gone, Report, StoreError, TimedOut
from .tier import Copies, Debt, MayDrop


class NoTier:
    """Stands where a local tier would, grants everything and keeps nothing.

    What Redis cannot be told is lost, so whoever would have to keep it raises instead.
    """

    keeps = keeps_early = False

    def __init__(self) -> None:
        self._notes: dict[str, bytes] = {}

    def claim(self, claim: Claim, *, owed: bool = False) -> Claimed | Found:
        """Leave the decision to Redis."""
        return FIRST

    def renew(self, claims: Sequence[Claim], *, owed: bool = False) -> list[bool]:
        """Leave the decision to Redis."""
        return [True] * len(claims)

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int, *, owed: bool = False) -> bool:
        """Nothing is kept here.

        :raises StoreError: Redis does not have it either.
        """
        return _told(owed)

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """Nothing is kept here."""
        return False

    def fail(self, claim: Claim, *, owed: bool = False) -> bool:
        """Nothing is kept here.

        :raises StoreError: Redis does not have it either.
        """
        return _told(owed)

    def forget(self, claim: Claim, *, owed: bool = False) -> bool:
        """Nothing is kept here, and where Redis could not be told, the claim ends with its lease."""
        return True

    def begin_step(self, claim: Claim, name: bytes, intent: bytes, *, owed: bool = False) -> bytes | None:
        """Nothing is kept here.

        :raises StoreError: Redis does not have it either.
        """
        _told(owed)
        return b""

    def end_step(self, claim: Claim, result: bytes, *, owed: bool = False) -> bool:
        """Nothing is kept here.

        :raises StoreError: Redis does not have it either.
        """
        return _told(owed)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """Nothing is known here."""
        return Gone()

    def peek(self, key: str) -> Found | None:
        """Nothing is known here.

        :raises StoreError: Redis would have to be asked.
        """
        raise _lost()

    def get(self, key: str) -> bytes | None:
        """Nothing is known here.

        :raises StoreError: Redis would have to be asked.
        """
        raise _lost()

    def set(self, key: str, value: bytes, ttl_ms: int, *, owed: bool = False) -> None:
        """Nothing is kept here.

        :raises StoreError: Redis does not have it either.
        """
        _told(owed)

    def delete(self, key: str, *, owed: bool = False) -> bool:
        """Nothing is known here.

        :raises StoreError: Redis could not be told.
        """
        return not _told(owed)

    def report(self) -> Report:
        """Redis decides, whether it can be reached or not."""
        return Report(cache_type="redis")

    def close(self) -> None:
        """There is nothing to give back."""

    def owe(self, claim: Claim, ttl_ms: int = 0) -> None:
        """Nothing is written back."""

    def debts(self, after_serial: int = 0, limit: int = 500) -> list[Debt]:
        """Nothing is written back."""
        return []

    def settle(self, debt: Debt) -> bool:
        """Nothing is written back."""
        return True

    def owed_count(self) -> int:
        """Nothing is written back."""
        return 0

    def is_owed(self, key: str) -> bool:
        """Nothing is written back."""
        return False

    def take(self, key: str) -> tuple[bytes, int] | None:
        """Nothing is known here."""
        return None

    def copies(self, before: int = 0, limit: int = 500) -> Copies:
        """Nothing is known here."""
        return Copies([], None)

    def drop(self, key: str, record: bytes) -> bool:
        """There are none."""
        return False

    def drop_copies(self) -> None:
        """There are none."""

    def remember(self, name: str, value: bytes) -> None:
        """Keep a note in this process."""
        self._notes[name] = value

    def recall(self, name: str) -> bytes | None:
        """A note of this process."""
        return self._notes.get(name)

    def take_turn(self, name: str, owner: bytes, turn_ms: int) -> bool:
        """Nobody else uses this tier."""
        return True

    def allow_dropping(self, may_drop: MayDrop) -> None:
        """There is nothing to drop."""

    def now(self) -> int:
        """By the machine's monotonic clock: no instant of this tier stands in a record."""
        return int(time.monotonic() * 1000)


def _lost() -> StoreError:
    return StoreError("Redis is away, and nothing is kept here (IDEMPOTENCY_LOCAL_TIER is None)", outage=True)


def _told(owed: bool) -> bool:
    if owed:
        raise _lost()
    return True
