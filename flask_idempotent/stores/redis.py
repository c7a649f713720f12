"""Records in Redis: every operation is one Lua script over one key, judged by the server's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, cast

from ..core.machine import head_of
from ..core.record import ATTEMPT, DEADLINE_SIZE, HEAD_SIZE, OWNER, UNDATED_SIZE, VERSION, State, is_running
from ..core.store import FIRST, TAKEOVER_MS, Claim, Claimed, Found, Gone, Report, StoreError, StoreFull, TimedOut
from . import scripts
from .condition import Condition
from .failures import store_error
from .nodes import Nodes
from .questions import translated
from .scripts import Script
from .servers import run_ids
from .wakeups import Wakeups
from .wire import Beside, Reply, ServerError, pack
from .writeback import WriteBack

LISTEN_SECONDS: Final = 0.5  # for a subscription to stand before the record is read without it
PING: Final = pack("PING")
_NEW: Final = 1  # the answer to a claim for a key under which nothing stood
_CLAIM: Final = bytes((VERSION,)) + State.PENDING.value  # what the record of a claim begins with


class RedisStore(WriteBack):
    """A store shared by all workers that reach the same Redis.

    :param nodes: the servers.
    :param alone: whether no other tier remembers an outcome that this one could not be told; then it is told twice.
    :param min_replicas: how many replicas must have a claim or an outcome before it counts.
    :param wait_ms: how long they may take for it; None for most of the time that a server may take to answer.
    """

    def __init__(self, nodes: Nodes, *, alone: bool = False, min_replicas: int = 0, wait_ms: int | None = None) -> None:
        super().__init__(nodes)
        self.condition = Condition(nodes)
        self.min_replicas = min_replicas
        self._alone = alone
        self._durably = pack("WAIT", min_replicas, wait_ms or int(nodes.timeout * 800)) if min_replicas else b""
        self._wakeups = Wakeups(nodes.client)

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip."""
        terms = claim.terms
        kept_ms = max(terms.lease_ms, terms.ttl_ms)
        args = (claim.owner, claim.fingerprint, terms.lease_ms, kept_ms, int(terms.resume))
        beside = Beside(partial(self._more, partial(_is_own, claim=claim))) if self._durably else None
        answer, *replicas = self._send(scripts.CLAIM, claim.key, args, beside)
        if answer == _NEW:
            granted = FIRST
        elif _is_own(answer, claim):
            granted = Claimed(int.from_bytes(answer[DEADLINE_SIZE:][ATTEMPT], "big"))
        else:
            return _found(answer)
        if replicas and (lacking := self._lacking(claim.key, replicas[0])):
            self._take_back(claim._replace(attempt=granted.attempt))
            raise lacking
        return granted

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`. One pipeline for all of a server's."""
        calls = [
            (claim.key, (claim.owner, head_of(claim, State.PENDING), claim.terms.lease_ms, claim.terms.ttl_ms))
            for claim in claims
        ]
        answers = self._run_all(scripts.RENEW, calls)
        for answer in answers:
            if isinstance(answer, ServerError):
                raise store_error(answer) from answer
        return [bool(kept) for kept in answers]

    def complete(
        self, claim: Claim, payload: bytes, ttl_ms: int, meanwhile: Callable[[], object] | None = None
    ) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip.

        :param meanwhile: called while it is under way; not where nothing could be sent, and twice if need be.
        """
        args = (claim.key, claim.owner, head_of(claim, State.DONE), payload, ttl_ms)
        try:
            return self._end(scripts.COMPLETE, *args, meanwhile=meanwhile)
        except StoreFull:
            with suppress(StoreError):
                self._run(scripts.STRETCH, claim.key, claim.owner, ttl_ms)
            raise
        except StoreError as error:
            if not (self._alone and error.outage):
                raise
        return self._end(scripts.COMPLETE, *args)

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._end(scripts.FAIL, claim.key, claim.owner, head_of(claim, State.FAILED), claim.terms.ttl_ms)

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return bool(self._run(scripts.FORGET, claim.key, claim.owner))

    def withdraw(self, key: str, owner: bytes) -> bool:
        """Give back a claim of which only the token is known. That an earlier attempt failed or died stays known."""
        return bool(self._run(scripts.WITHDRAW, key, owner))

    def _take_back(self, claim: Claim) -> None:
        """Give back a claim that was granted, and whose request is not going to run. Where there is another tier, that
        one knows what is to become of it.
        """
        if self._alone:
            with suppress(StoreError):
                self.forget(claim) if claim.attempt == 1 else self.fail(claim)

    def begin_step(self, claim: Claim, name: bytes, intent: bytes) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip."""
        terms = claim.terms
        args = (claim.owner, head_of(claim, State.PENDING), terms.lease_ms, terms.ttl_ms, name, intent)
        return cast(bytes | None, self._run(scripts.STEP, claim.key, *args))

    def end_step(self, claim: Claim, result: bytes) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip."""
        terms = claim.terms
        args = (claim.owner, head_of(claim, State.PENDING), terms.lease_ms, terms.ttl_ms, result)
        return self._end(scripts.STEP_DONE, claim.key, *args)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. Listens first, then reads, so that no change is missed."""
        deadline = time.monotonic() + timeout_ms / 1000
        with self._wakeups.listening(key, min(timeout_ms / 1000, LISTEN_SECONDS)) as ear:
            while True:
                found = self.peek(key)
                if found is None:
                    return Gone()
                if not is_running(found.record, found.now_ms - TAKEOVER_MS):
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    return TimedOut()
                ear.wait(left)

    def peek(self, key: str) -> Found | None:
        """What stands under a key, by the server's clock."""
        answer = self._run(scripts.PEEK, key)
        return None if answer is None else _found(answer)

    def left(self, key: str) -> int:
        """Milliseconds for which a key is still kept; 0 where nothing stands."""
        return max(int(self._command("PTTL", key)), 0)

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return cast(bytes | None, self._command("GET", key))

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._command("SET", key, value, "PX", ttl_ms)

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return bool(self._command("DEL", key))

    def servers(self) -> str | None:
        """The servers that take writes, each by the id of its present run; None where nobody may ask.

        :raises StoreError: they do not answer.
        """
        found = run_ids(self.nodes)
        self.condition.log_once()
        return found

    def ping(self) -> None:
        """Ask the servers for a sign of life, and for their replicas where these count.

        :raises StoreError: there was none within the time budget.
        """
        with translated:
            answers = self.nodes.each(PING + self._durably, 1 + bool(self._durably))
            for replies in answers.values():
                for reply in replies:
                    if isinstance(reply, ServerError):
                        raise reply
                if self._durably and (lacking := self._lacking("", replies[1])):
                    raise lacking
        self.condition.log_once()

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`."""
        try:
            self.ping()
        except StoreError as error:
            return Report(cache_type="redis", outage=str(error), refused=not error.outage)
        return Report(cache_type="redis", redis_available=True, warnings=self.condition.warnings())

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._wakeups.close()
        self.nodes.close()

    def _end(self, script: Script, key: str, *args: bytes | int, meanwhile: Callable[[], object] | None = None) -> bool:
        more = partial(self._more, bool) if self._durably else None
        beside = Beside(more, meanwhile) if more or meanwhile else None
        ended, *replicas = self._send(script, key, args, beside)
        if replicas and (lacking := self._lacking(key, replicas[0])):
            raise lacking
        return bool(ended)

    def _more(self, wrote: Callable[[Reply], bool], replies: list[Reply]) -> bytes:
        """What asks how many replicas have what a script wrote, over the connection that wrote, for WAIT tells of no
        other; and only after a write: nobody should wait for a replica who merely reads.
        """
        return b"" if isinstance(replies[0], ServerError) or not wrote(replies[0]) else self._durably

    def _lacking(self, key: str, replicas: int) -> StoreError | None:
        """The error of a write that too few replicas have; None when it is well."""
        if replicas >= self.min_replicas:
            return None
        self.nodes.doubt(key)  # they may follow another master by now
        return StoreError(f"only {replicas} of {self.min_replicas} replicas have the record", outage=True)


def _found(answer: bytes) -> Found:
    """The server's clock and the record, which come in one string."""
    return Found(answer[DEADLINE_SIZE:], int(answer[:DEADLINE_SIZE]))


def _is_own(answer: Any, claim: Claim) -> bool:
    """Whether a claim's answer says that the key is the claim's own."""
    if answer == _NEW:
        return True
    record = answer[DEADLINE_SIZE:]
    if len(record) != HEAD_SIZE or record[:2] != _CLAIM or record[OWNER] != claim.owner:
        return False
    return any(record[ATTEMPT]) and record[UNDATED_SIZE:].isdigit()
