"""Faults on demand: what shall go wrong with the next calls of the API."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from .errors import ApiError

ERROR_STATUSES = (402, 429, 500)
PLACES = ("sessions", "refunds", "retrievals")  # creating a session, creating a refund, retrieving a session
MAX_DELAY = 600.0
MAX_TIMES = 1000


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one execution; the parts combine, and by default nothing does.

    :ivar delay: seconds for which the execution hangs before it acts.
    :ivar error: 402, 429 or 500 to be answered in place of an object; None for no error.
    :ivar lost_answer: execute and keep the outcome, then drop the connection without a word.
    :ivar at: what is disturbed, one of :data:`PLACES`.
    """

    delay: float = 0.0
    error: int | None = None
    lost_answer: bool = False
    at: str = "sessions"

    def __post_init__(self) -> None:
        """Check the values; raises ValueError, whose message names what is allowed."""
        if isinstance(self.delay, bool) or not isinstance(self.delay, (int, float)):
            raise ValueError("delay takes a number of seconds")
        if not 0 <= self.delay <= MAX_DELAY:
            raise ValueError(f"delay takes 0 to {MAX_DELAY:.0f} seconds")
        if self.error is not None and (type(self.error) is not int or self.error not in ERROR_STATUSES):
            raise ValueError("error takes 402, 429 or 500")
        if type(self.lost_answer) is not bool:
            raise ValueError("lost_answer takes true or false")
        if self.at not in PLACES:
            raise ValueError(f"at takes {', '.join(PLACES)}")


class FaultQueue:
    """The faults that wait for a call, first in, first out. Safe to share between threads."""

    def __init__(self) -> None:
        """Start without faults."""
        self._lock = threading.Lock()
        self._waiting: deque[Fault] = deque()

    def __len__(self) -> int:
        """Return how many executions are still to be disturbed."""
        with self._lock:
            return len(self._waiting)

    def put(self, fault: Fault, times: int = 1) -> None:
        """Let ``fault`` happen to the next ``times`` (1 to 1000) executions after those that wait already.

        :raises ValueError: when ``times`` is no whole number in that range.
        """
        if type(times) is not int or not 1 <= times <= MAX_TIMES:
            raise ValueError(f"times takes a whole number from 1 to {MAX_TIMES}")
        with self._lock:
            self._waiting.extend([fault] * times)

    def take(self, at: str = "sessions") -> Fault:
        """Return what shall happen to the execution that asks; a Fault without effect when nothing waits."""
        with self._lock:
            for fault in self._waiting:
                if fault.at == at:
                    self._waiting.remove(fault)
                    return fault
            return Fault(at=at)

    def clear(self) -> None:
        """Forget every fault that waits."""
        with self._lock:
            self._waiting.clear()


def injected_error(status: int) -> ApiError:
    """Return Stripe's error for one of the statuses that a Fault can carry."""
    if status == 402:
        return ApiError(402, "Your card was declined.", type="card_error", code="card_declined")
    if status == 429:
        return ApiError(429, "Too many requests. Wait a moment and send it again.", code="rate_limit")
    return ApiError(500, "Something went wrong on the sandbox's end, as it was told.", type="api_error")
