"""Records in this process, in a SimpleCache backend that never evicts a live one."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from flask import Flask
from flask_caching.backends.simplecache import SimpleCache

from ..core.machine import Change, Effect, Event, transition
from ..core.record import State
from ..core.store import Claim, Claimed, Found, Gone, Report, StoreFull, TimedOut

DROP_CANDIDATES: Final = 16


def steady_clock() -> Callable[[], int]:
    """A clock in milliseconds since the epoch that does not jump when the machine's time is set."""
    offset = time.time() - time.monotonic()
    return lambda: int((offset + time.monotonic()) * 1000)


class RecordCache(SimpleCache):
    """Flask-Caching's SimpleCache for records: expiry in milliseconds, and full means full.

    The inherited backend keeps whole seconds and, at its threshold, throws out what expires soonest: the leases of
    running requests. Here a heap finds what has expired in O(log n), and :meth:`put` refuses a new key when all the
    others live.
    """

    def __init__(self, threshold: int) -> None:
        super().__init__(threshold=threshold, default_timeout=0)
        self.lock = self._lock
        self.may_drop: Callable[[str], bool] = lambda _key: False
        self._by_expiry: list[tuple[int, str]] = []
        self._settled: dict[str, None] = {}  # keys of records that are not pending, the longest settled first

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

        :raises StoreFull: the key is new and there are as many live records as the threshold.
        """
        if key not in self._cache:
            self.drop_expired(now)
            if len(self._cache) >= self._threshold and not self._drop_one():
                raise StoreFull(
                    f"the memory store holds its limit of {self._threshold} records; raise "
                    "IDEMPOTENCY_CACHE_THRESHOLD, shorten IDEMPOTENCY_TTL or use Redis"
                )
        if self._cache.get(key, (None, None))[0] != expires:
            heapq.heappush(self._by_expiry, (expires, key))
        self._cache[key] = (expires, value)
        self._settled.pop(key, None)
        if value[1:2] != State.PENDING.value:
            self._settled[key] = None
        if len(self._by_expiry) > 2 * len(self._cache) + 1000:  # one key rewritten over and over
            self._by_expiry = [(when, name) for name, (when, _) in self._cache.items()]
            heapq.heapify(self._by_expiry)

    def drop_expired(self, now: int) -> None:
        """Remove what has expired; hold the lock. A heap entry whose record was rewritten since is skipped."""
        while self._by_expiry and self._by_expiry[0][0] <= now:
            expires, key = heapq.heappop(self._by_expiry)
            if self._cache.get(key, (None, None))[0] == expires:
                self.remove(key)

    def _drop_one(self) -> bool:
        """Make room at the expense of a settled record that ``may_drop`` gives up."""
        for key in list(islice(self._settled, DROP_CANDIDATES)):
            if self.may_drop(key):
                return self.remove(key)
            self._settled[key] = self._settled.pop(key)  # to the end of the line
        return False

    def remove(self, key: str) -> bool:
        """Take a key out, live or not; hold the lock."""
        self._settled.pop(key, None)
        return self._cache.pop(key, None) is not None

    def __len__(self) -> int:
        return len(self._cache)


class MemoryStore:
    """A store for one process: compare-and-set under the backend's own lock.

    :param backend: where the bytes are.
    :param clock: milliseconds since the epoch.
    """

    def __init__(self, backend: RecordCache, clock: Callable[[], int] | None = None) -> None:
        self._backend = backend
        self._clock = clock or steady_clock()
        self._waiters: dict[str, set[threading.Event]] = {}

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`.

        :raises StoreFull: there is no room for a new key.
        """
        now, change = self._apply(Event.CLAIM, claim)
        if change.effect is Effect.REFUSED:
            return Found(change.record, now)
        return Claimed(int.from_bytes(change.record[2:4], "big"))

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return [self._renew(claim) for claim in claims]

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._write(Event.COMPLETE, claim, payload, ttl_ms)

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._write(Event.FAIL, claim)

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._write(Event.FORGET, claim)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. Costs an event, no polling."""
        changed = threading.Event()
        deadline = time.monotonic() + timeout_ms / 1000
        with self._backend.lock:
            self._waiters.setdefault(key, set()).add(changed)
        try:
            while True:
                with self._backend.lock:
                    now = self._clock()
                    record, _ = self._backend.find(key, now)
                    changed.clear()
                if record is None:
                    return Gone()
                if record[1:2] != State.PENDING.value:
                    return Found(record, now)
                if not changed.wait(max(deadline - time.monotonic(), 0)):
                    return TimedOut()
        finally:
            with self._backend.lock:
                waiting = self._waiters[key]
                waiting.discard(changed)
                if not waiting:
                    del self._waiters[key]

    def peek(self, key: str) -> Found | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with self._backend.lock:
            now = self._clock()
            record, _ = self._backend.find(key, now)
        return None if record is None else Found(record, now)

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with self._backend.lock:
            return self._backend.find(key, self._clock())[0]

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`.

        :raises StoreFull: there is no room for a new key.
        """
        with self._backend.lock:
            now = self._clock()
            self._backend.put(key, value, now + ttl_ms, now)
            self._wake(key)

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with self._backend.lock:
            live = self._backend.find(key, self._clock())[0] is not None
            self._backend.remove(key)
            self._wake(key)
            return live

    def allow_dropping(self, may_drop: Callable[[str], bool]) -> None:
        """When full, give up settled records for whose key ``may_drop`` is true instead of refusing new keys."""
        self._backend.may_drop = may_drop

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with self._backend.lock:
            self._backend.drop_expired(self._clock())
            return Report(cache_type="memory", in_memory_size=len(self._backend))

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`. There is nothing to give back; the records stay."""

    def take(self, key: str) -> tuple[bytes, int] | None:
        """The live bytes under a key and the milliseconds they have left, for copying them elsewhere."""
        with self._backend.lock:
            now = self._clock()
            record, expires = self._backend.find(key, now)
            return None if record is None else (record, expires - now)

    def _renew(self, claim: Claim) -> bool:
        try:
            return self._write(Event.RENEW, claim)
        except StoreFull:  # no room to put an absent record back; but nobody else has the key
            return True

    def _write(self, event: Event, claim: Claim, payload: bytes = b"", ttl_ms: int | None = None) -> bool:
        _, change = self._apply(event, claim, payload, ttl_ms)
        return change.effect is not Effect.REFUSED

    def _apply(self, event: Event, claim: Claim, payload: bytes = b"", ttl_ms: int | None = None) -> tuple[int, Change]:
        with self._backend.lock:
            now = self._clock()
            record, expires = self._backend.find(claim.key, now)
            change = transition(event, record, expires, claim, now, payload=payload, ttl_ms=ttl_ms)
            if change.effect is Effect.DELETED:
                self._backend.remove(claim.key)
            elif change.expires:
                self._backend.put(claim.key, change.record, change.expires, now)
            if event is not Event.CLAIM:
                self._wake(claim.key)
            return now, change

    def _wake(self, key: str) -> None:
        for changed in self._waiters.get(key, ()):
            changed.set()
