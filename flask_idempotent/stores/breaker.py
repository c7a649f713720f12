"""The circuit breaker before Redis: after two failures nobody waits for it, until a background probe finds it well."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final

from ..core.store import StoreError

log = logging.getLogger("flask_idempotent")

FAILURES_TO_OPEN: Final = 2
PROBE_SECONDS: Final = 0.25
PROBE_JITTER: Final = 0.2
# Before the next attempts at what cannot be written back. At first it may be another host's claim that is in the way,
# which is about to be withdrawn.
FIRST_LEFTOVER_SECONDS: Final = 0.05
LEFTOVER_SECONDS: Final = 1.0


class Prober:
    """The thread that probes."""

    def __init__(self) -> None:
        self.told_to_stop = threading.Event()

    def start(self, probe: Callable[[Prober], None]) -> None:
        """Start the thread.

        :raises RuntimeError: there is none to be had.
        """
        threading.Thread(target=probe, args=(self,), name="idempotency-probe", daemon=True).start()


class Breaker:
    """Counts failures in a row, opens at the second, and closes when ``recover`` succeeds.

    The probe is one thread, started by the first who needs it. While nothing is
    wrong it glances at the server at the same pace, so that a restart or an outage is noticed where nobody asks.

    :param recover: brings the server's records up to date. True when nothing is left to do, False when some records
        must be tried again later. Raises StoreError while the server is away.
    :param glance: looks whether the server is still there; True when there is something to recover. Without it the
        probe ends when nothing is left to do.
    :param changed: told True when an outage begins, and False when it has ended.
    :param stopped: called by a probe that ends because it was told to: it may have asked something after that.
    """

    def __init__(
        self,
        recover: Callable[[], bool],
        glance: Callable[[], bool] | None = None,
        changed: Callable[[bool], None] = lambda _away: None,
        stopped: Callable[[], None] = lambda: None,
    ) -> None:
        self._recover = recover
        self._glance = glance
        self._changed = changed
        self._stopped = stopped
        self._lock = threading.Lock()
        self.failures = 0  # in a row
        self.prober: Prober | None = None
        self._wanted = False  # since the last recovery began
        self._patience = FIRST_LEFTOVER_SECONDS  # with what is left over
        self._again_at = float("-inf")  # when it is tried again, monotonic seconds
        self.is_open = False
        self.reason: str | None = None  # the failure that began the present outage
        self.since: float | None = None  # when that was, seconds since the epoch
        self.ended = float("-inf")  # when the last outage was over, monotonic seconds

    def succeeded(self) -> None:
        """Note that the server answered. Only the probe ends an outage."""
        if self.failures and not self.is_open:
            with self._lock:
                self.failures = 0

    def failed(self, error: StoreError) -> None:
        """Note a failure; the first of an outage is logged."""
        self._count(error)
        self.probe()

    def _count(self, error: StoreError) -> None:
        with self._lock:
            self.failures += 1
            self.is_open = self.is_open or self.failures >= FAILURES_TO_OPEN
            first, self.reason = self.reason is None, self.reason or str(error)
            self.since = self.since or time.time()
        if first:
            log.error("idempotency: %s; until it is back each route follows its on_outage", error)
            self._changed(True)

    def watch(self) -> None:
        """See to it that the probe of this process runs."""
        prober = self.prober
        if prober is None:
            self._start()

    def probe(self) -> None:
        """See to it that ``recover`` is called in the background until nothing is left to do."""
        self._wanted = True
        self._start()

    def hurry(self) -> None:
        """Try what is left over soon again: something new has come between."""
        self._patience, self._again_at = FIRST_LEFTOVER_SECONDS, float("-inf")

    def stop(self) -> None:
        """Let the probe end, whatever is left to do."""
        with self._lock:
            prober, self.prober = self.prober, None
        if prober is not None:
            prober.told_to_stop.set()

    def _start(self) -> None:
        with self._lock:
            if self.prober is not None:
                return
            prober = self.prober = Prober()
            try:
                prober.start(self._probe)
            except RuntimeError as error:  # no thread to be had now; the next one who finds Redis away tries again
                self.prober = None
                log.warning("idempotency: Redis cannot be looked for: %s", error)

    def _probe(self, me: Prober) -> None:
        try:
            self._probe_until_told(me)
        finally:  # whatever ends it, a filter of the host's log or a receiver of its signals: the next one is let in
            with self._lock:
                if self.prober is me:
                    self.prober = None

    def _probe_until_told(self, me: Prober) -> None:
        pause: float | None = PROBE_SECONDS
        while pause is not None:
            jitter = random.uniform(1 - PROBE_JITTER, 1 + PROBE_JITTER)  # noqa: S311
            if me.told_to_stop.wait(pause * jitter) or self.prober is not me:
                self._stopped()
                return
            to_do = self._wanted and time.monotonic() >= self._again_at
            pause = self._try_to_recover(me) if to_do or self.reason is not None else self._look()

    def _try_to_recover(self, me: Prober) -> float | None:
        """One attempt; the seconds until the next, or None when there is nothing left to do for this thread."""
        self._wanted, was_open = False, self.is_open
        try:
            finished = self._recover()
        except StoreError as error:
            if error.outage and not self.is_open:
                self._count(error)
            return PROBE_SECONDS
        except Exception:  # whatever it is, the next outage needs a probe, too
            log.exception("idempotency: records could not be written back")
            return LEFTOVER_SECONDS
        if self._closed(me, finished):
            return None if self._glance is None else 0.0  # a restarted server may lack more than it has missed
        if was_open:
            return 0.0  # at once for what came up before the breaker closed
        self._again_at = time.monotonic() + self._patience
        self._patience = min(2 * self._patience, LEFTOVER_SECONDS)
        return self._look()  # what cannot be written now must not keep a restarted server from getting the rest

    def _look(self) -> float:
        try:
            if self._glance is not None and self._glance():
                self._wanted = True
                return min(max(self._again_at - time.monotonic(), 0.0), PROBE_SECONDS)
        except StoreError as error:
            if error.outage:
                self._count(error)
        except Exception:
            log.exception("idempotency: Redis could not be looked at")
        else:
            self.succeeded()
        return PROBE_SECONDS

    def _closed(self, me: Prober, finished: bool) -> bool:
        """End the outage, and the probe as well where nothing is left to do and nothing came up meanwhile."""
        with self._lock:
            ended, self.reason, self.is_open, self.failures = self.reason, None, False, 0
            self.since = None
            if ended:
                self.ended = time.monotonic()
            self._wanted = self._wanted or not finished
            over = not self._wanted
            if over or ended:
                self.hurry()
            if over and self._glance is None and self.prober is me:
                self.prober = None
        if ended:
            log.warning("idempotency: Redis is back, and has what was recorded meanwhile")
            self._changed(False)
        return over
