"""The guard: one request's way through a store, from the claim to the outcome."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from enum import StrEnum
from functools import partial
from os import getpid
from typing import Final, NamedTuple, Protocol

from .forks import PerProcess
from .lease import Heartbeat
from .machine import Busy, Mismatch, Replay, Unknown, Verdict, head_of, judge
from .record import OWNER_SIZE, State, StoredResponse, UnstorableResponse, pack_payload
from .store import Claim, Claimed, Found, OnOutage, Sign, Store, StoreError, StoreFull, Terms

FULL_SECONDS: Final = 10.0  # for which a store counts as full that nobody asks for room any more


class Outcome(StrEnum):
    """What became of one request. The values name log records and signals."""

    CLAIMED = "claimed"
    REPLAYED = "replayed"
    BUSY = "busy"
    MISMATCHED = "mismatched"
    UNKNOWN = "outcome-unknown"
    COMPLETED = "completed"
    FAILED = "failed"
    RELEASED = "released"
    LOST_LEASE = "lost-lease"
    UNPROTECTED = "unprotected"
    UNRECORDED = "unrecorded"
    OUTAGE = "outage"
    RECOVERED = "recovered"
    DUPLICATED = "duplicated"


class Occurrence(NamedTuple):
    """Something that an observer may want to know.

    :param outcome: what happened.
    :param key: the storage key, which is hashed.
    :param error: why an outcome could not be stored, for UNRECORDED.
    """

    outcome: Outcome
    key: str
    error: Exception | None = None


class Observer(Protocol):
    """What is called with the parts of each :class:`Occurrence`."""

    def __call__(self, outcome: Outcome, key: str, error: Exception | None = None, /) -> None:
        """Take note."""


class Unprotected(Sign):
    """The store is away and the route prefers to run without it."""


_NAMES = {Replay: Outcome.REPLAYED, Busy: Outcome.BUSY, Mismatch: Outcome.MISMATCHED, Unknown: Outcome.UNKNOWN}


class Guard:
    """Begins and ends requests.

    :param store: where the records are.
    :param observe: told what happens.
    :param token: makes 16 unpredictable bytes.
    """

    def __init__(
        self,
        store: Store,
        observe: Observer,
        token: Callable[[], bytes] = partial(os.urandom, OWNER_SIZE),  # noqa: B008 - it is not called here
    ) -> None:
        self.store = store
        self._observe = observe
        self._token = token
        self._full_until = float("-inf")
        self._heartbeats = PerProcess(lambda: Heartbeat(store, lambda claim: observe(Outcome.LOST_LEASE, claim.key)))

    def begin(self, key: str, fingerprint: bytes, terms: Terms) -> Claim | Unprotected | Verdict:
        """Take the key, or say why the view must not run. A duplicate waits here, for ``terms.wait_ms`` at most.

        :return: a claim: the caller holds the key and must end it with finish, fail or forget.
        :raises StoreError: the store cannot answer and the route does not run without it.
        :raises UnreadableRecord: what stands there is no record.
        :raises NewerRecord: a later version of this library wrote it.
        """
        claim = Claim(key, self._token(), fingerprint, terms)
        try:
            answer = self.store.claim(claim)
        except StoreError as error:
            if isinstance(error, StoreFull):
                self._full_until = time.monotonic() + FULL_SECONDS
            if not error.outage or terms.on_outage is not OnOutage.EXECUTE:
                raise
            self._observe(Outcome.UNPROTECTED, key)
            return Unprotected()
        if isinstance(answer, Claimed):
            self._full_until = float("-inf")
            if answer.attempt != claim.attempt:
                claim = claim._replace(attempt=answer.attempt)
            return self._started(claim)
        verdict = self._wait(answer, claim)
        self._observe(_NAMES[type(verdict)], key)
        return verdict

    @property
    def is_full(self) -> bool:
        """Whether the store had no room for a new key a moment ago, and has taken none since."""
        return time.monotonic() < self._full_until

    def _started(self, claim: Claim) -> Claim:
        """Keep the lease from now on. What goes wrong before the view runs must not leave the key taken."""
        try:
            self._heartbeats[getpid()].add(claim)
            self._observe(Outcome.CLAIMED, claim.key)
        except BaseException:
            self.forget(claim)
            raise
        return claim

    def _wait(self, found: Found, claim: Claim) -> Verdict:
        """A waiter never runs the view: it gets the outcome, or is told to come back."""
        verdict = judge(found, claim)
        if not isinstance(verdict, Busy) or not claim.terms.wait_ms:
            return verdict
        try:
            later = self.store.wait(claim.key, claim.terms.wait_ms)
        except StoreError:
            return verdict
        return judge(later, claim) if isinstance(later, Found) else verdict

    def finish(self, claim: Claim, response: StoredResponse, ttl_ms: int, compress_over: int) -> bool:
        """Store the outcome. False when it could not be stored: the client still gets it.

        :param ttl_ms: its retention.
        :param compress_over: bytes from which compression is tried.
        """
        try:
            payload = pack_payload(head_of(claim, State.DONE), response, compress_over)
        except UnstorableResponse as error:
            self._observe(Outcome.UNRECORDED, claim.key, error)
            self.fail(claim)
            return False
        return self._end(Outcome.COMPLETED, claim, self.store.complete, payload, ttl_ms)

    def fail(self, claim: Claim) -> bool:
        """Note a failure: the same request may run again under the key, another may not."""
        return self._end(Outcome.FAILED, claim, self.store.fail)

    def forget(self, claim: Claim) -> bool:
        """Free the key: the request was refused before it did anything. After an earlier attempt, which may have done
        something, the key stays with this request.
        """
        if claim.attempt > 1:
            return self.fail(claim)
        return self._end(Outcome.RELEASED, claim, self.store.forget)

    def close(self) -> None:
        """End the heartbeat and give back what the store holds."""
        self._heartbeats().stop()
        self.store.close()

    def _end(self, outcome: Outcome, claim: Claim, write: Callable[..., bool], *args: bytes | int) -> bool:
        self._heartbeats[getpid()].discard(claim)
        try:
            written = write(claim, *args)
        except StoreError as error:
            self._observe(Outcome.UNRECORDED, claim.key, error)
            return False
        self._observe(outcome if written else Outcome.LOST_LEASE, claim.key)
        return written
