"""The circuit breaker before Redis: after two failures nobody waits for it, until a background probe finds it well."""

from __future__ import annotations

import logging
import os
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
LEFTOVER_SECONDS: Final = 1.0


class Breaker:
    """Counts failures in a row, opens at the second, and closes when ``recover`` succeeds.

    The probe is a thread of its own that lives only while there is something to recover; the failure that needs it
    starts it, so it never runs before a fork.

    :param recover: brings the server's records up to date. True when nothing is left to do, False when some records
        must be tried again later. Raises StoreError while the server is away.
    """

    def __init__(self, recover: Callable[[], bool]) -> None:
        self._recover = recover
        self._lock = threading.Lock()
        self._failures = 0
        self._prober: tuple[int, object] | None = None  # the process in which a probe runs, and which one it is
        self._wanted = False  # since the last recovery began
        self.is_open = False
        self.reason: str | None = None  # the failure that began the present outage

    def succeeded(self) -> None:
        """Note that the server answered. Only the probe ends an outage."""
        if self._failures and not self.is_open:
            with self._lock:
                self._failures = 0

    def failed(self, error: StoreError) -> None:
        """Note a failure; the first of an outage is logged."""
        with self._lock:
            self._failures += 1
            self.is_open = self.is_open or self._failures >= FAILURES_TO_OPEN
            first, self.reason = self.reason is None, self.reason or str(error)
        if first:
            log.error("idempotency: %s; until it is back each route follows its on_outage", error)
        self.probe()

    def probe(self) -> None:
        """See to it that ``recover`` is called in the background until nothing is left to do."""
        with self._lock:
            self._wanted = True
            if self._prober is not None and self._prober[0] == os.getpid():
                return
            prober = (os.getpid(), object())
            try:
                threading.Thread(target=self._probe, args=(prober,), name="idempotency-probe", daemon=True).start()
            except RuntimeError as error:  # no thread to be had now; the next one who finds Redis away tries again
                log.warning("idempotency: Redis cannot be looked for: %s", error)
                return
            self._prober = prober

    def stop(self) -> None:
        """Let the probe end, whatever is left to do."""
        with self._lock:
            self._prober = None

    def _probe(self, me: tuple[int, object]) -> None:
        pause = PROBE_SECONDS
        while True:
            time.sleep(pause * random.uniform(1 - PROBE_JITTER, 1 + PROBE_JITTER))  # noqa: S311
            if self._prober != me:  # told to stop
                return
            self._wanted, was_open = False, self.is_open
            try:
                finished = self._recover()
            except StoreError:
                pause = PROBE_SECONDS
                continue
            except Exception:  # whatever it is, the next outage needs a probe, too
                log.exception("idempotency: records could not be written back")
                pause = LEFTOVER_SECONDS
                continue
            if self._closed(me, finished):
                return
            pause = 0.0 if was_open else LEFTOVER_SECONDS  # at once for what came up before the breaker closed

    def _closed(self, me: tuple[int, object], finished: bool) -> bool:
        """End the outage, and the probe as well where nothing is left to do and nothing came up meanwhile."""
        with self._lock:
            ended, self.reason, self.is_open, self._failures = self.reason, None, False, 0
            over = finished and not self._wanted
            if over and self._prober == me:
                self._prober = None
        if ended:
            log.warning("idempotency: Redis is back, and has what was recorded meanwhile")
        return over
