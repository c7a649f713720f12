"""The local tier before Redis. The local one arbitrates within its reach at all times, Redis arbitrates among all.

When Redis is away nothing switches over: the local tier goes on doing what it always did, and what it decided alone is
written to Redis when Redis is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, TypeVar

from ..core.record import OWNER, NewerRecord, State, UnreadableRecord, read_head
from ..core.store import Claim, Claimed, Found, Gone, OnOutage, Report, StoreError, StoreFull, TimedOut
from .breaker import Breaker
from .debts import Debt, Debts
from .memory import MemoryStore
from .redis import Copy, RedisStore, Restored

log = logging.getLogger("flask_idempotent")
Answer = TypeVar("Answer")

ROUNDS: Final = 10  # of writing back before the breaker closes
DELETION_MS: Final = 86_400_000  # for how long a deletion that Redis missed is remembered


class TieredStore:
    """Claims and outcomes go to both tiers; what Redis knows better comes back into the local one.

    :param local: the tier of this process.
    :param shared: Redis.
    """

    def __init__(self, local: MemoryStore, shared: RedisStore) -> None:
        self._local = local
        self._shared = shared
        self._breaker = Breaker(self._recover)
        self._asking: dict[str, tuple[bytes, threading.Event]] = {}  # claims on their way to Redis
        self._debts = Debts()
        self._reported: set[str] = set()  # keys whose write-back has failed in a way that was logged
        local.allow_dropping(self._is_copy)

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`. A finished record answers without Redis.

        :raises StoreError: Redis is away and the route does not go on with the local tier alone.
        """
        while isinstance(mine := self._local.claim(claim), Found):
            asking = self._asking.get(claim.key)
            if asking is None or mine.record[OWNER] != asking[0]:
                return mine
            asking[1].wait()  # what stands here is a question to Redis, not yet anybody's word
        asking = self._asking[claim.key] = (claim.owner, threading.Event())
        try:
            return self._agree(claim, mine)
        finally:
            if self._asking.get(claim.key) is asking:
                del self._asking[claim.key]
            asking[1].set()

    def _agree(self, claim: Claim, mine: Claimed) -> Claimed | Found:
        """Ask Redis for what the local tier has granted."""
        try:
            theirs = self._ask(self._shared.claim, claim)
        except StoreError as error:
            if error.outage and claim.terms.on_outage is OnOutage.LOCAL:
                self._owe(claim.key, claim)
                return mine
            if mine.attempt > 1:  # an earlier attempt has failed or died: that is not forgotten
                self._local.fail(replace(claim, attempt=mine.attempt))
            else:
                self._local.forget(claim)
            if error.outage and not isinstance(error, _NotAsked):  # it may have been applied all the same
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
        return self._end(claim, "complete", payload, ttl_ms, ttl_ms=ttl_ms)

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._end(claim, "fail")

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._end(claim, "forget")

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. Waits here for a request of this process, else on Redis."""
        began = time.monotonic()
        here = self._local.wait(key, timeout_ms)
        if not isinstance(here, Gone):
            return here
        left = timeout_ms - int((time.monotonic() - began) * 1000)
        return self._ask(self._shared.wait, key, max(left, 0))

    def peek(self, key: str) -> Found | None:
        """See :class:`~flask_idempotent.core.store.Store`. Redis knows; without it, the local tier."""
        try:
            return self._ask(self._shared.peek, key)
        except StoreError as error:
            if not error.outage:
                raise
            return self._local.peek(key)

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. Redis knows; without it, what this process has set."""
        if key in self._debts:
            return self._local.get(key)
        try:
            return self._ask(self._shared.get, key)
        except StoreError as error:
            if not error.outage:
                raise
            return self._local.get(key)

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        args = (key, value, ttl_ms)
        self._both(key, (), ttl_ms, lambda: self._local.set(*args), lambda: self._shared.set(*args))

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        here = self._local.get(key) is not None
        there = self._both(key, (), DELETION_MS, lambda: self._local.delete(key), lambda: self._shared.delete(key))
        return here or bool(there)

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`. Asks Redis, except while the breaker is open."""
        report = replace(self._local.report(), waiting=len(self._debts))
        try:
            self._ask(self._shared.ping)
        except StoreError as error:
            return replace(report, outage=self._breaker.reason or str(error), refused=not error.outage)
        return replace(report, cache_type="redis", redis_available=True)

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

    def _end(self, claim: Claim, how: str, *args: Any, ttl_ms: int = 0) -> bool:
        """Complete, fail or forget a claim in both tiers."""

        def here() -> bool:
            try:
                return bool(getattr(self._local, how)(claim, *args))
            except StoreFull:  # the record was lost here and has no room; Redis may have some
                return True

        def there() -> bool:
            return bool(getattr(self._shared, how)(claim, *args))

        ended = self._both(claim.key, (claim,), ttl_ms, here, there) is not False
        if not ended:
            self._drop_own(claim)
        return ended

    def _drop_own(self, claim: Claim) -> None:
        """Another worker has the key on Redis: its word counts here, too."""
        record = self._local.get(claim.key)
        if record is not None and record[OWNER] == claim.owner:
            self._local.delete(claim.key)

    def _both(
        self, key: str, claims: tuple[Claim, ...], ttl_ms: int, here: Callable[[], Any], there: Callable[[], Any]
    ) -> Any:
        """Do a thing in both tiers: False or an error here ends it, and what Redis misses it is owed.

        :return: what Redis said, or what was said here when it could not be asked.
        """
        debt, earlier = self._debts.note(
            key, claims, ttl_ms
        )  # first, so that nobody takes what changes here for a mere copy
        try:
            kept = here()
        except StoreError:
            self._debts.undo(key, debt, earlier)
            raise
        if kept is False and claims:
            self._debts.undo(key, debt, earlier)
            return False
        try:
            told = self._ask(there)
        except StoreError:
            self._debts.note(key, claims, ttl_ms)
            self._breaker.probe()
            return kept
        self._debts.paid(key, debt)
        return told

    def _ask(self, call: Callable[..., Answer], *args: Any) -> Answer:
        """Ask Redis, unless it is known to be away."""
        if self._breaker.is_open:
            self._breaker.probe()
            raise _NotAsked(self._breaker.reason or "Redis is away", outage=True)
        try:
            answer = call(*args)
        except StoreError as error:
            if error.outage:
                self._breaker.failed(error)
            raise
        self._breaker.succeeded()
        return answer

    def _owe(self, key: str, claim: Claim) -> None:
        self._debts.note(key, (claim,))
        self._breaker.probe()

    def _is_copy(self, key: str) -> bool:
        """Whether a full local tier may drop a settled record: Redis has it, too, and can be asked."""
        return key not in self._debts and self._breaker.reason is None

    def _recover(self) -> bool:
        """Write back what Redis has missed; whether all of it is settled."""
        self._shared.ping()
        tried: dict[str, Debt] = {}
        for _ in range(ROUNDS):  # what comes up while the others are written is written, too
            debts = self._debts.besides(tried)
            tried.update(debts)
            for key, debt in debts:
                try:
                    if self._write_back(key, debt):
                        self._debts.paid(key, debt)
                except StoreError as error:
                    if error.outage:
                        raise
                    self._set_aside(key, error)
        self._reported = {key for key in self._reported if key in self._debts}
        return not self._debts

    def _set_aside(self, key: str, error: StoreError) -> None:
        """A record that cannot be written is tried again later, and must not hold up the others."""
        if key not in self._reported:
            self._reported.add(key)
            log.error("idempotency: a record cannot be written back: %s", error, extra={"idempotency_key": key})

    def _write_back(self, key: str, debt: Debt) -> bool:
        """Bring Redis up to date with one key, however often it changes meanwhile; False: try again later."""
        taken = self._local.take(key)
        while True:
            if not self._copy(key, debt, taken):
                return False
            before, taken = taken, self._local.take(key)
            if (before and before[0]) == (taken and taken[0]):
                return True

    def _copy(self, key: str, debt: Debt, taken: tuple[bytes, int] | None) -> bool:
        """Give Redis what the local tier holds; False where it has to wait for another's request."""
        if not debt.claims:
            self._shared.set(key, *taken) if taken else self._shared.delete(key)
            return True
        record, left_ms = taken or (b"", 0)
        for claim in debt.claims:
            if claim.owner != record[OWNER]:  # it came to nothing here, and may stand there
                self._shared.forget(claim)
        if not record:
            return True
        (restored,) = self._shared.restore([Copy(key, record, left_ms, debt.claims[-1].terms.lease_ms)])
        if isinstance(restored, StoreError):
            raise restored
        if restored is Restored.DONE_ELSEWHERE:
            log.error("idempotency: a request ran here and elsewhere during an outage", extra={"idempotency_key": key})
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
