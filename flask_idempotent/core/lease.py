"""The heartbeat: one lazy thread that keeps the leases of running requests alive."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from .store import Claim, Store, StoreError

log = logging.getLogger("flask_idempotent")

RENEWALS_PER_LEASE = 3
IDLE_SECONDS = 60.0
LOOK_SECONDS = 1.0  # between two looks of a thread that has nothing to renew


class Heartbeat:
    """Renews every registered claim three times per lease, all of a store's in one call. It belongs to one process.

    The thread starts with the first claim, and ends when there was nothing to renew for a while. Until then it looks
    once a second, so that no new claim has to wake it but those with the shortest leases: most requests are over long
    before their first renewal is due.

    :param store: where the leases are.
    :param lost: called with a claim that another worker has taken over.
    :param clock: seconds, monotonic.
    """

    def __init__(
        self, store: Store, lost: Callable[[Claim], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._lost = lost
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # entering the lock itself is cheaper than this
        # By the owner: when it is due, and again after how long, when it is given up, and the claim.
        self._due: dict[bytes, tuple[float, float, float, Claim]] = {}
        self._in_flight: frozenset[bytes] = frozenset()
        self._wakes_at = float("inf")
        self._came = False  # whether a claim came since the thread last looked
        self._running = False
        self._stopping = False

    def add(self, claim: Claim) -> None:
        """Keep the lease of a claim alive from now on, for its ``max_runtime_ms`` at most."""
        now, terms = self._clock(), claim.terms
        interval = terms.lease_ms / 1000 / RENEWALS_PER_LEASE
        due = now + interval
        with self._lock:
            self._came = True
            if not self._running:
                self._start()
            self._due[claim.owner] = (due, interval, now + terms.max_runtime_ms / 1000, claim)
            if due < self._wakes_at:
                self._changed.notify_all()

    def discard(self, claim: Claim) -> None:
        """Stop renewing a claim. On return no renewal of it is under way, so it can be completed or forgotten."""
        with self._lock:
            self._due.pop(claim.owner, None)
            if self._stopping and not self._due:  # it was told to stop while this one ran
                self._changed.notify_all()
            while claim.owner in self._in_flight:
                self._changed.wait()

    def stop(self) -> None:
        """Let the thread end. Leases of requests that still run are renewed no more."""
        with self._changed:
            self._due.clear()
            self._stopping = self._running
            self._changed.notify_all()

    def _start(self) -> None:
        self._wakes_at = float("inf")
        threading.Thread(target=self._run, name="idempotency-heartbeat", daemon=True).start()
        self._running = True

    def _run(self) -> None:
        while claims := self._next_claims():
            try:
                self._renew(claims)
            finally:
                with self._changed:
                    self._in_flight = frozenset()
                    self._changed.notify_all()

    def _next_claims(self) -> list[Claim]:
        """Sleep until leases are due and mark their claims as in flight; empty when the thread is no longer needed."""
        with self._changed:
            idle = 0.0
            while True:
                if self._stopping and not self._due:
                    self._stopping = self._running = False
                    return []
                if claims := self._take_due():
                    self._in_flight = frozenset(claim.owner for claim in claims)
                    return claims
                now = self._clock()
                rest = min(LOOK_SECONDS, IDLE_SECONDS)
                self._wakes_at = min((due for due, *_ in self._due.values()), default=now + rest)
                woken = self._changed.wait(max(self._wakes_at - now, 0))
                self._wakes_at = float("-inf")
                used, self._came = woken or self._came or bool(self._due), False
                idle = 0.0 if used else idle + rest
                if not used and idle >= IDLE_SECONDS:
                    self._running = False
                    return []

    def _take_due(self) -> list[Claim]:
        """The claims to renew now, rescheduled; those past their longest runtime are let go."""
        now = self._clock()
        taken = []
        for owner, (due, interval, end, claim) in list(self._due.items()):
            if now >= end:
                del self._due[owner]
                log.warning("a request runs longer than IDEMPOTENCY_MAX_RUNTIME; its lease is no longer renewed")
            elif due <= now:
                self._due[owner] = (now + interval, interval, end, claim)
                taken.append(claim)
        return taken

    def _renew(self, claims: list[Claim]) -> None:
        """One beat. Whatever goes wrong in it, the next one comes: it keeps the leases of the whole process."""
        try:
            kept = self._store.renew(claims)
            for claim, ours in zip(claims, kept, strict=True):
                if not ours:
                    with self._changed:
                        running = self._due.pop(claim.owner, None) is not None
                    if running:
                        self._lost(claim)
        except StoreError as error:
            log.warning("idempotency: leases could not be renewed: %s", error)
        except Exception:
            log.exception("idempotency: leases could not be renewed")
