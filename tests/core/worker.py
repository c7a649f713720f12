"""A worker process in miniature: a guard over a store, with a heartbeat that beats when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from flask_idempotent.core import guard as guard_module
from flask_idempotent.core.guard import Guard, Occurrence, Outcome
from flask_idempotent.core.record import StoredResponse
from flask_idempotent.core.store import Claim, Store, Terms
from flask_idempotent.stores.memory import MemoryStore, RecordCache

from .helpers import CREATED, REQUEST, TERMS, Clock


class ManualHeartbeat:
    """The heartbeat without its thread and its clock."""

    def __init__(self, store: Store, lost: Callable[[Claim], None]) -> None:
        self._store = store
        self._lost = lost
        self.claims: dict[bytes, Claim] = {}

    def add(self, claim: Claim) -> None:
        self.claims[claim.owner] = claim

    def discard(self, claim: Claim) -> None:
        self.claims.pop(claim.owner, None)

    def stop(self) -> None:
        self.claims.clear()

    def beat(self) -> None:
        """Renew everything once."""
        claims = list(self.claims.values())
        for claim, ours in zip(claims, self._store.renew(claims), strict=True):
            if not ours:
                del self.claims[claim.owner]
                self._lost(claim)


class Worker:
    """A guard, what it reported, and its heartbeat."""

    def __init__(self, store: Store, token: Callable[[], bytes] | None = None) -> None:
        self.seen: list[Occurrence] = []
        options: dict[str, Any] = {} if token is None else {"token": token}
        beats: list[ManualHeartbeat] = []

        def make(store: Store, lost: Callable[[Claim], None]) -> ManualHeartbeat:
            beats.append(ManualHeartbeat(store, lost))
            return beats[-1]

        with patch.object(guard_module, "Heartbeat", make):
            self.guard = Guard(store, lambda *told: self.seen.append(Occurrence(*told)), **options)
            self.guard._heartbeats()  # made when first needed
        (self.heartbeat,) = beats

    @property
    def outcomes(self) -> list[Outcome]:
        return [occurrence.outcome for occurrence in self.seen]

    def begin(self, key: str = "k", fingerprint: bytes = REQUEST, terms: Terms = TERMS) -> Any:
        return self.guard.begin(key, fingerprint, terms)

    def run(self, key: str = "k", fingerprint: bytes = REQUEST, terms: Terms = TERMS) -> Claim:
        """Begin a request that must get its key."""
        begun = self.guard.begin(key, fingerprint, terms)
        assert isinstance(begun, Claim), begun
        return begun

    def finish(self, run: Claim, response: StoredResponse = CREATED, ttl_ms: int | None = None) -> bool:
        return self.guard.finish(run, response, run.terms.ttl_ms if ttl_ms is None else ttl_ms, 1024)

    def end(self, how: str, run: Claim) -> bool:
        """Finish, fail or forget, by name."""
        return self.finish(run) if how == "finish" else bool(getattr(self.guard, how)(run))


def memory(clock: Clock, threshold: int = 1000) -> MemoryStore:
    """A store in this process whose time is the test's."""
    return MemoryStore(RecordCache(threshold), clock)
