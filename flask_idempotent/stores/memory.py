"""Records in this process, in a SimpleCache backend that never evicts a live one."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from flask import Flask
from flask_caching.backends.simplecache import SimpleCache

from ..core.record import HEAD_SIZE, MARK, UNDATED_SIZE, State
from ..core.store import StoreFull
from .expiry import Expiries
from .ledger import Ledger
from .local import LocalStore
from .table import Rows
from .tier import Debt, MayDrop

Answer = TypeVar("Answer")

DROP_CANDIDATES: Final = 16
SWEEP_MS: Final = 250  # between two looks for what has expired
SWEPT: Final = 16  # entries of the expiry queue per write, while there are any
COUNTED: Final = 10_000  # entries of it for an exact count
DROPPED: Final = 1000  # keys per transaction when copies are dropped
_PENDING: Final = State.PENDING.value
_DEADLINE: Final = slice(UNDATED_SIZE, HEAD_SIZE)


def steady_clock() -> Callable[[], int]:
    """A clock in milliseconds since the epoch that does not jump when the machine's time is set."""
    offset = time.time() - time.monotonic()
    return lambda: int((offset + time.monotonic()) * 1000)


class RecordCache(SimpleCache):
    """Flask-Caching's SimpleCache for records: expiry in milliseconds, and full means full.

    The inherited backend keeps whole seconds and, at its threshold, throws out what expires soonest: the leases of
    running requests. Here a heap finds what has expired in O(log n), and :meth:`put` refuses a new key when all the
    others live.

    :param threshold: how many records it holds.
    :param limit_bytes: how many bytes of records it holds when it takes a new key; None for any number.
    """

    def __init__(self, threshold: int, limit_bytes: int | None = None) -> None:
        super().__init__(threshold=threshold, default_timeout=0)
        self.lock = self._lock
        self.may_drop: MayDrop = lambda _marks: ()
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._expiries = Expiries[str](self._expiry_of, self._cache.__len__)
        self._settled: OrderedDict[str, None] = OrderedDict()  # records that are not pending, the longest settled first

    @classmethod
    def factory(cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]) -> RecordCache:
        """How Flask-Caching builds the backend from CACHE_THRESHOLD."""
        return cls(threshold=config["CACHE_THRESHOLD"])

    def find(self, key: str, now: int) -> tuple[bytes | None, int]:
        """The live bytes under a key and when they expire, in milliseconds; hold the lock."""
        expires, value = self._cache.get(key, (0, None))
        return (value, expires) if expires > now else (None, 0)

    def put(self, key: str, value: bytes, expires: int, now: int) -> None:
        """Store bytes until ``expires``; hold the lock.

        :raises StoreFull: the key is new and there are as many live records as the threshold, or as many bytes.
        """
        before, old = self._cache.get(key, (None, b""))
        if before is None and self._full(len(value)):
            self._make_room(len(value), now)
        self._bytes += len(value) - len(old)
        self._cache[key] = (expires, value)
        if before != expires:
            self._expiries.add(key, expires)
        if value[1:2] != _PENDING:
            self._settled[key] = None
            self._settled.move_to_end(key)
        elif before is not None:
            self._settled.pop(key, None)

    def drop_expired(self, now: int, limit: int = SWEPT) -> int:
        """Look at some of what may have expired, and remove it; hold the lock.

        :return: how many entries were looked at; less than the limit when nothing is left.
        """
        looked_at = 0
        for key in self._expiries.expired(now, limit):
            looked_at += 1
            if key is not None:
                self.remove(key)
        return looked_at

    def remove(self, key: str) -> bool:
        """Take a key out, live or not; hold the lock."""
        self._settled.pop(key, None)
        _, value = self._cache.pop(key, (0, None))
        self._bytes -= len(value or b"")
        return value is not None

    def keys(self) -> list[str]:
        """All keys, live or not; hold the lock."""
        return list(self._cache)

    def __len__(self) -> int:
        return len(self._cache)

    def _make_room(self, size: int, now: int) -> None:
        """Let a new record of ``size`` bytes fit in."""
        while full := self._full(size):
            if not self.drop_expired(now) and not self._drop_one():
                raise StoreFull(f"the memory store holds its limit of {full}, shorten IDEMPOTENCY_TTL or use Redis")

    def _full(self, size: int) -> str | None:
        """Which limit stands against another record, and what to do about it."""
        if len(self._cache) >= self._threshold:
            return f"{self._threshold} records; raise IDEMPOTENCY_CACHE_THRESHOLD"
        if self._limit_bytes is not None and self._bytes + size > self._limit_bytes:
            return f"{self._limit_bytes} bytes; raise it"
        return None

    def _drop_one(self) -> bool:
        """Make room at the expense of a settled record that ``may_drop`` gives up."""
        for key in list(islice(self._settled, DROP_CANDIDATES)):
            if self.may_drop({key: self._cache[key][1][MARK]}):
                return self.remove(key)
            self._settled.move_to_end(key)
        return False

    def _expiry_of(self, key: str) -> int | None:
        expires: int | None = self._cache.get(key, (None, b""))[0]
        return expires


class MemoryTable:
    """Records, debts and notes of a process, under the backend's own lock.

    :param backend: where the records are.
    """

    def __init__(self, backend: RecordCache) -> None:
        self.may_drop: MayDrop = lambda _marks: ()
        self._backend = backend
        self.find = backend.find  # see Rows
        self._ledger = Ledger()
        self._notes: dict[str, bytes] = {}
        self._by_age: list[str] = []  # the keys in order of their first record, while they are read page by page
        self._to_drop: list[str] = []  # the keys that are looked at, part by part
        self._sweep_at = 0
        backend.may_drop = self._droppable

    def run(self, work: Callable[[Rows], Answer], *, writes: bool = True, settles: bool = False) -> Answer:
        """See :class:`~flask_idempotent.stores.table.Table`."""
        with self._backend.lock:
            return work(self)

    def at_once(self, work: Callable[..., Answer], *args: Any) -> Answer | None:
        """See :class:`~flask_idempotent.stores.table.Table`."""
        with self._backend.lock:
            return work(self, *args)

    def close(self) -> None:
        """See :class:`~flask_idempotent.stores.table.Table`. There is nothing to give back."""

    def put(self, key: str, record: bytes, expires: int, now: int) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`. Removes some of what has expired in passing."""
        if now >= self._sweep_at:
            self._sweep(now)
        self._backend.put(key, record, expires, now)

    def put_new(self, key: str, record: bytes, expires: int, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self.put(key, record, expires, now)
        return True

    def replace(self, key: str, start: bytes, record: bytes, expires: int, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        old, _ = self._backend.find(key, now)
        if old is None or old[:UNDATED_SIZE] != start or len(old) != HEAD_SIZE or not old[_DEADLINE].isdigit():
            return False
        self._backend.put(key, record, expires, now)
        return True

    def remove(self, key: str) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._backend.remove(key)

    def page(self, before: int, limit: int, now: int) -> tuple[list[tuple[str, bytes, int]], int | None]:
        """See :class:`~flask_idempotent.stores.table.Rows`. What comes meanwhile is not among them."""
        if not before:
            self._by_age = self._backend.keys()
            before = len(self._by_age)
        first = max(before - limit, 0)
        found = [(key, *self._backend.find(key, now)) for key in reversed(self._by_age[first:before])]
        if not first:
            self._by_age = []
        return [(key, record, expires) for key, record, expires in found if record is not None], first or None

    def drop_copies(self, after: int, now: int) -> int | None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        if not after:
            self._to_drop = self._backend.keys()
        part = self._to_drop[after : after + DROPPED]
        for key in part:
            if not self._ledger.owes(key, now) and self._is_copy(key, now):
                self._backend.remove(key)
        if part:
            return after + DROPPED
        self._to_drop = []
        return None

    def count(self, now: int) -> int:
        """See :class:`~flask_idempotent.stores.table.Rows`. What expired in great numbers just now may be included."""
        self._backend.drop_expired(now, COUNTED)
        return len(self._backend)

    def owe(self, key: str, owner: bytes, lease_ms: int, expires: int) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._ledger.owe(key, owner, lease_ms, expires)

    def settle(self, serial: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._ledger.settle(serial)

    def debts(self, after_serial: int, limit: int, now: int) -> list[Debt]:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._ledger.after(after_serial, limit, now)

    def owed_count(self, now: int) -> int:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._ledger.count(now)

    def is_owed(self, key: str, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._ledger.owes(key, now)

    def remember(self, name: str, value: bytes) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._notes[name] = value

    def recall(self, name: str) -> bytes | None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._notes.get(name)

    def _droppable(self, marks: Mapping[str, bytes]) -> Collection[str]:
        return self.may_drop({key: mark for key, mark in marks.items() if not self._ledger.owes(key)})

    def _sweep(self, now: int) -> None:
        debts_left = self._ledger.sweep(now)
        records_left = self._backend.drop_expired(now) == SWEPT
        self._sweep_at = now if debts_left or records_left else now + SWEEP_MS

    def _is_copy(self, key: str, now: int) -> bool:
        """Whether a record is settled, or a claim whose lease is over."""
        record, _ = self._backend.find(key, now)
        return record is not None and (record[1:2] != _PENDING or record[_DEADLINE] <= b"%013d" % now)


class MemoryStore(LocalStore):
    """A store for one process: compare-and-set under the backend's own lock. Those who wait cost an event, no polling.

    :param backend: where the bytes are.
    :param clock: milliseconds since the epoch.
    """

    def __init__(self, backend: RecordCache, clock: Callable[[], int] | None = None) -> None:
        super().__init__(MemoryTable(backend), clock or steady_clock())
        self._backend = backend
