"""The tier of this process or of this host: one store over any table of rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Final

from ..core.machine import Change, Effect, Event, begun, ended, head_of, transition
from ..core.record import ATTEMPT, OWNER_SIZE, State, is_running
from ..core.steps import journal_key
from ..core.store import FIRST, TAKEOVER_MS, Claim, Claimed, Found, Gone, Report, StoreError, StoreFull, TimedOut
from .table import Rows, Table
from .tier import Copies, Debt, LocalTier, MayDrop

__all__ = ["Debt", "LocalStore", "LocalTier"]

DELETION_MS: Final = 86_400_000  # for how long a deletion is owed
LEASE_CHECK_SECONDS: Final = 1.0  # between two looks of one who waits: a dead worker tells nobody
NOBODY: Final = b""  # the owner of plain values


class LocalStore:
    """The rules of :mod:`flask_idempotent.core.machine` over a table.

    :param table: where the rows are.
    :param clock: milliseconds since the epoch, the same for all who use the rows.
    """

    host_wide: ClassVar[bool] = False  # in its report
    keeps = True
    keeps_early = False

    def __init__(self, table: Table, clock: Callable[[], int]) -> None:
        self._table = table
        self._clock = clock
        self._waiters: dict[object, tuple[str, threading.Event]] = {}

    def claim(self, claim: Claim, *, owed: bool = False) -> Claimed | Found:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`.

        :raises StoreFull: there is no room for a new key.
        """
        if not owed and (answer := self._table.at_once(self._claim_at_once, claim)) is not None:
            return answer
        now, change = self._table.run(lambda rows: self._apply(rows, Event.CLAIM, claim, owed), writes=False)
        if change.effect is Effect.REFUSED:
            return Found(change.record, now)
        return Claimed(int.from_bytes(change.record[ATTEMPT], "big"))

    def renew(self, claims: Sequence[Claim], *, owed: bool = False) -> list[bool]:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`. One transaction for all."""
        if not claims:
            return []
        try:
            return self._table.run(lambda rows: [self._renew(rows, claim, owed) for claim in claims])
        except StoreFull:
            return [self._renew_alone(claim, owed) for claim in claims]

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        if not owed and self._table.at_once(self._complete_at_once, claim, payload, ttl_ms):
            if self._waiters:
                self._wake(claim.key)
            return True
        return self._end(Event.COMPLETE, claim, owed, payload, ttl_ms)

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`. In a process it would save little."""
        return False

    def fail(self, claim: Claim, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._end(Event.FAIL, claim, owed)

    def forget(self, claim: Claim, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._end(Event.FORGET, claim, owed)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. No transaction is held meanwhile."""
        deadline = time.monotonic() + timeout_ms / 1000
        with self._listening(key) as changed:
            while True:
                changed.clear()
                record, now = self._look(key)
                if record is None:
                    return Gone()
                if not is_running(record, now - TAKEOVER_MS):
                    return Found(record, now)
                if time.monotonic() >= deadline:
                    return TimedOut()
                self._rest(changed, deadline)

    def begin_step(self, claim: Claim, name: bytes, intent: bytes, *, owed: bool = False) -> bytes | None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> bytes | None:
            if not self._renew(rows, claim, owed):
                return None
            journal = self._journal(rows, claim)
            if name not in journal:
                self._append(rows, claim, journal + intent, owed)
            return journal

        return self._table.run(work)

    def end_step(self, claim: Claim, result: bytes, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> bool:
            kept = self._renew(rows, claim, owed)
            if kept:
                self._append(rows, claim, self._journal(rows, claim) + result, owed)
            return kept

        return self._table.run(work, settles=True)

    def peek(self, key: str) -> Found | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        record, now = self._look(key)
        return None if record is None else Found(record, now)

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._look(key)[0]

    def set(self, key: str, value: bytes, ttl_ms: int, *, owed: bool = False) -> None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`.

        :raises StoreFull: there is no room for a new key.
        """

        def work(rows: Rows) -> None:
            now = self._clock()
            rows.put(key, value, now + ttl_ms, now)
            if owed:
                rows.owe(key, NOBODY, 0, now + ttl_ms)

        self._table.run(work)
        self._wake(key)

    def delete(self, key: str, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> bool:
            now = self._clock()
            live = rows.find(key, now)[0] is not None
            rows.remove(key)
            if owed:
                rows.owe(key, NOBODY, 0, now + DELETION_MS)
            return live

        live = self._table.run(work)
        self._wake(key)
        return live

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`."""
        try:
            size = self._table.run(lambda rows: rows.count(self._clock()), writes=False)
        except StoreError as error:
            return Report(cache_type="memory", host_wide=self.host_wide, outage=str(error), refused=True)
        return Report(cache_type="memory", host_wide=self.host_wide, in_memory_size=size)

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`. The records stay."""
        self._table.close()

    def owe(self, claim: Claim, ttl_ms: int = 0) -> None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        self._table.run(lambda rows: _owe(rows, claim, self._clock(), ttl_ms), settles=True)

    def debts(self, after_serial: int = 0, limit: int = 500) -> list[Debt]:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._table.run(lambda rows: rows.debts(after_serial, limit, self._clock()), writes=False)

    def settle(self, debt: Debt) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._table.run(lambda rows: rows.settle(debt.serial))

    def owed_count(self) -> int:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._table.run(lambda rows: rows.owed_count(self._clock()), writes=False)

    def is_owed(self, key: str) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._table.run(lambda rows: rows.is_owed(key, self._clock()), writes=False)

    def take(self, key: str) -> tuple[bytes, int] | None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> tuple[bytes, int] | None:
            now = self._clock()
            record, expires = rows.find(key, now)
            return None if record is None else (record, expires - now)

        return self._table.run(work, writes=False)

    def copies(self, before: int = 0, limit: int = 500) -> Copies:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> Copies:
            now = self._clock()
            page, further = rows.page(before, limit, now)
            return Copies([(key, record, expires - now) for key, record, expires in page], further)

        return self._table.run(work, writes=False)

    def drop(self, key: str, record: bytes) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> bool:
            now = self._clock()
            unchanged = rows.find(key, now)[0] == record and not rows.is_owed(key, now)
            if unchanged:
                rows.remove(key)
            return unchanged

        return self._table.run(work)

    def drop_copies(self) -> None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`. In small transactions, so that nobody waits for it."""
        after: int | None = 0
        while after is not None:
            after = self._table.run(partial(self._drop_copies, after))

    def now(self) -> int:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._clock()

    def remember(self, name: str, value: bytes) -> None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        self._table.run(lambda rows: rows.remember(name, value))

    def recall(self, name: str) -> bytes | None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        return self._table.run(lambda rows: rows.recall(name), writes=False)

    def take_turn(self, name: str, owner: bytes, turn_ms: int) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""

        def work(rows: Rows) -> bool:
            now, held = self._clock(), rows.recall(name) or owner
            if held[:OWNER_SIZE] != owner and int(held[OWNER_SIZE:]) > now:
                return False
            rows.remember(name, owner + b"%d" % (now + turn_ms))
            return True

        return self._table.run(work)

    def allow_dropping(self, may_drop: MayDrop) -> None:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        self._table.may_drop = may_drop

    def _claim_at_once(self, rows: Rows, claim: Claim) -> Claimed | Found | None:
        """A claim for a new key, or for a finished one; None for all others."""
        now = self._clock()
        record, _ = rows.find(claim.key, now)
        if record is not None:
            return Found(record, now) if record[1:2] == State.DONE.value else None
        return FIRST if rows.put_new(claim.key, *begun(claim, now), now) else None

    def _complete_at_once(self, rows: Rows, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """The outcome of a request that has its key, as nearly all have."""
        now = self._clock()
        return rows.replace(claim.key, head_of(claim, State.PENDING), *ended(claim, payload, now, ttl_ms), now)

    def _end(self, event: Event, claim: Claim, owed: bool, payload: bytes = b"", ttl_ms: int | None = None) -> bool:
        _, change = self._table.run(lambda rows: self._apply(rows, event, claim, owed, payload, ttl_ms), settles=True)
        self._wake(claim.key)
        return change.effect is not Effect.REFUSED

    def _renew(self, rows: Rows, claim: Claim, owed: bool) -> bool:
        return self._apply(rows, Event.RENEW, claim, owed)[1].effect is not Effect.REFUSED

    def _renew_alone(self, claim: Claim, owed: bool) -> bool:
        try:
            return self._table.run(lambda rows: self._renew(rows, claim, owed))
        except StoreFull:  # no room to put an absent record back; but nobody else has the key
            return True

    def _apply(
        self, rows: Rows, event: Event, claim: Claim, owed: bool, payload: bytes = b"", ttl_ms: int | None = None
    ) -> tuple[int, Change]:
        now = self._clock()
        record, expires = rows.find(claim.key, now)
        change = transition(event, record, expires, claim, now, payload=payload, ttl_ms=ttl_ms)
        if change.effect is Effect.DELETED:
            rows.remove(claim.key)
        elif change.expires:
            rows.put(claim.key, change.record, change.expires, now)
        if owed and change.effect is not Effect.REFUSED:
            _owe(rows, claim, now, ttl_ms or 0)
        return now, change

    def _journal(self, rows: Rows, claim: Claim) -> bytes:
        return rows.find(journal_key(claim.key), self._clock())[0] or b""

    def _append(self, rows: Rows, claim: Claim, journal: bytes, owed: bool) -> None:
        """Write a journal, which lives as long as its record."""
        now = self._clock()
        _, expires = rows.find(claim.key, now)
        key = journal_key(claim.key)
        rows.put(key, journal, expires, now)
        if owed:
            rows.owe(key, NOBODY, 0, expires)

    def _drop_copies(self, after: int, rows: Rows) -> int | None:
        return rows.drop_copies(after, self._clock())

    def _look(self, key: str) -> tuple[bytes | None, int]:
        """The live record under a key, and the time."""

        def work(rows: Rows) -> tuple[bytes | None, int]:
            now = self._clock()
            return rows.find(key, now)[0], now

        return self._table.run(work, writes=False)

    def _rest(self, changed: threading.Event, deadline: float) -> None:
        """Wait until something has happened to a key that is waited for, or a lease may be over; at most until the
        deadline, monotonic.
        """
        changed.wait(max(min(deadline - time.monotonic(), LEASE_CHECK_SECONDS), 0))

    @contextmanager
    def _listening(self, key: str) -> Iterator[threading.Event]:
        """An event that is set when something happens to a key in this process."""
        changed, me = threading.Event(), object()
        self._waiters[me] = (key, changed)
        try:
            yield changed
        finally:
            del self._waiters[me]

    def _wake(self, key: str) -> None:
        """Tell those who wait for a key. No lock is held that a fork might leave behind."""
        for awaited, changed in list(self._waiters.values()):
            if awaited == key:
                changed.set()


def _owe(rows: Rows, claim: Claim, now: int, ttl_ms: int) -> None:
    kept_ms = max(ttl_ms, claim.terms.ttl_ms, claim.terms.lease_ms)
    rows.owe(claim.key, claim.owner, claim.terms.lease_ms, now + kept_ms)
