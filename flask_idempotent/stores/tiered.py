"""The local tier before Redis. The local one arbitrates within its reach at all times, Redis arbitrates among all.

When Redis is away nothing switches over: the local tier goes on doing what it always did, and what it decided alone is
written to Redis when Redis is back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..core.record import NewerRecord, State, UnreadableRecord, read_head
from ..core.store import Claim, Claimed, Found, Gone, OnOutage, Report, StoreError, StoreFull, TimedOut
from .breaker import Breaker
from .memory import MemoryStore
from .redis import RedisStore, Restored

log = logging.getLogger("flask_idempotent")
Answer = TypeVar("Answer")


class TieredStore:
    """Claims and outcomes go to both tiers; what Redis knows better comes back into the local one.

    :param local: the tier of this process.
    :param shared: Redis.
    """

    def __init__(self, local: MemoryStore, shared: RedisStore) -> None:
        self._local = local
        self._shared = shared
        self._breaker = Breaker(self._recover)
        self._owed: dict[str, Claim | None] = {}  # what Redis has missed, by key; None for a plain value
        local.allow_dropping(self._is_copy)

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`. A finished record answers without Redis.

        :raises StoreError: Redis is away and the route does not go on with the local tier alone.
        """
        mine = self._local.claim(claim)
        if isinstance(mine, Found):
            return mine
        try:
            theirs = self._ask(self._shared.claim, claim)
        except StoreError as error:
            if error.outage and claim.terms.on_outage is OnOutage.LOCAL:
                self._owe(claim.key, claim)
                return mine
            self._local.forget(claim)
            if not isinstance(error, _NotAsked):  # it may have been applied: its token settles it on recovery
                self._owe(claim.key, claim)
            raise
        return self._settle(claim, mine, theirs)

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`. The local word counts while Redis is away."""
        kept = self._local.renew(claims)
        try:
            theirs = self._ask(self._shared.renew, claims)
        except StoreError:
            for claim in claims:
                self._owe(claim.key, claim)
            return kept
        return [here and there for here, there in zip(kept, theirs, strict=True)]

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. Without Redis the outcome is kept here and written later."""
        kept = self._local.complete(claim, payload, ttl_ms)
        return kept and self._tell(claim, self._shared.complete, claim, payload, ttl_ms)

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._local.fail(claim) and self._tell(claim, self._shared.fail, claim)

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._local.forget(claim) and self._tell(claim, self._shared.forget, claim)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. Waits here for a request of this process, else on Redis."""
        began = time.monotonic()
        here = self._local.wait(key, timeout_ms)
        if not isinstance(here, Gone):
            return here
        left = timeout_ms - int((time.monotonic() - began) * 1000)
        return self._ask(self._shared.wait, key, max(left, 0))

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. Redis knows; without it, what this process has set."""
        try:
            return self._ask(self._shared.get, key)
        except StoreError as error:
            if not error.outage:
                raise
            return self._local.get(key)

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._local.set(key, value, ttl_ms)
        self._tell(key, self._shared.set, key, value, ttl_ms)

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        here = self._local.delete(key)
        return self._tell(key, self._shared.delete, key, otherwise=here) or here

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`. Asks Redis, except while the breaker is open."""
        report = self._local.report()
        try:
            self._ask(self._shared.ping)
        except StoreError as error:
            outage = self._breaker.reason or str(error)
            return replace(report, outage=outage, refused=not error.outage, waiting=len(self._owed))
        return replace(report, cache_type="redis", redis_available=True, waiting=len(self._owed))

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._breaker.stop()
        self._shared.close()

    def _settle(self, claim: Claim, mine: Claimed, theirs: Claimed | Found) -> Claimed | Found:
        """Bring the local tier in line with what Redis said about a claim that the local tier had granted."""
        if isinstance(theirs, Claimed):
            return max(mine, theirs, key=lambda claimed: claimed.attempt)
        left = _retention_left(theirs)
        if left > 0:
            self._local.set(claim.key, theirs.record, left)
        else:
            self._local.forget(claim)
        return theirs

    def _ask(self, call: Callable[..., Answer], *args: Any) -> Answer:
        """Ask Redis, unless it is known to be away."""
        if self._breaker.is_open:
            raise _NotAsked(self._breaker.reason or "Redis is away", outage=True)
        try:
            answer = call(*args)
        except StoreError as error:
            if error.outage:
                self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return answer

    def _tell(self, what: Claim | str, call: Callable[..., Any], *args: Any, otherwise: bool = True) -> bool:
        """Pass on to Redis what the local tier has already taken; what Redis misses is owed to it."""
        try:
            return bool(self._ask(call, *args))
        except StoreError:
            key, claim = (what, None) if isinstance(what, str) else (what.key, what)
            self._owe(key, claim)
            return otherwise

    def _is_copy(self, key: str, record: bytes) -> bool:
        """Whether a full local tier may drop a record: it is settled, and Redis has it, too."""
        return record[1:2] != State.PENDING.value and key not in self._owed

    def _owe(self, key: str, claim: Claim | None) -> None:
        self._owed[key] = claim
        self._breaker.probe()

    def _recover(self) -> bool:
        """Write back what Redis has missed; whether all of it is settled."""
        self._shared.ping()
        settled = True
        for key, claim in list(self._owed.items()):
            try:
                if not self._write_back(key, claim):
                    settled = False
                    continue
            except StoreFull as error:
                log.warning("idempotency: a record cannot be written back yet: %s", error)
                settled = False
                continue
            if self._owed.get(key) is claim:
                del self._owed[key]
        return settled and not self._owed

    def _write_back(self, key: str, claim: Claim | None) -> bool:
        """Settle one key; False when it must be tried again."""
        taken = self._local.take(key)
        if taken is None:
            self._shared.delete(key) if claim is None else self._shared.forget(claim)
            return True
        record, left_ms = taken
        if claim is None:
            self._shared.set(key, record, left_ms)
            return True
        restored = self._shared.restore(key, record, left_ms, claim.terms.lease_ms)
        if restored is Restored.DONE_ELSEWHERE:
            log.error(
                "idempotency: a request ran here and elsewhere while Redis was away", extra={"idempotency_key": key}
            )
        return restored is not Restored.PENDING_ELSEWHERE


class _NotAsked(StoreError):
    """The breaker is open: nothing was sent to Redis."""


def _retention_left(found: Found) -> int:
    """Milliseconds for which a finished record is still kept; 0 for any other record."""
    try:
        head = read_head(found.record)
    except (NewerRecord, UnreadableRecord):
        return 0
    return head.deadline - found.now_ms if head.state is State.DONE else 0
