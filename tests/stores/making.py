"""What the tests of the stores are made of: claims, records, and waiting with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from flask_idempotent.core.record import Head, State, StoredResponse, pack_payload
from flask_idempotent.core.store import Claim, OnOutage, Terms

Value = TypeVar("Value")

ME, OTHER, THIRD = b"m" * 16, b"o" * 16, b"t" * 16
SAME, DIFFERENT = b"s" * 32, b"d" * 32
PAST, FUTURE = 1_000_000_000_000, 9_000_000_000_000  # deadlines on either side of any clock
LEASE, TTL = 30_000, 600_000
KEY = "idempotency:{key}"


def claim_of(
    owner: bytes = ME,
    key: str = KEY,
    *,
    fingerprint: bytes = SAME,
    lease_ms: int = LEASE,
    ttl_ms: int = TTL,
    resume: bool = True,
    on_outage: OnOutage = OnOutage.LOCAL,
    attempt: int = 1,
) -> Claim:
    terms = Terms(lease_ms=lease_ms, ttl_ms=ttl_ms, resume=resume, on_outage=on_outage)
    return Claim(key, owner, fingerprint, terms, attempt)


def payload_of(claim: Claim, body: bytes = b"made") -> bytes:
    """A payload that replays, for the outcome of a claim."""
    head = Head(State.DONE, claim.attempt, claim.owner, claim.fingerprint, 0)
    return pack_payload(head.pack(), StoredResponse("201 CREATED", (("X-Made", "here"),), body), 1024)


def record_of(
    state: State,
    owner: bytes = OTHER,
    *,
    fingerprint: bytes = SAME,
    deadline: int = FUTURE,
    attempt: int = 1,
) -> bytes:
    """A whole record, as another worker may have left it."""
    head = Head(state, attempt, owner, fingerprint, deadline)
    body = payload_of(claim_of(owner, fingerprint=fingerprint, attempt=attempt)) if state is State.DONE else b""
    return head.pack() + body


def eventually(condition: Callable[[], Value], within: float = 5.0) -> Value:
    """Poll until a condition is truthy, and return what it gave."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not come true within {within} seconds"
        time.sleep(0.005)
    return value


def at_once(calls: Sequence[Callable[[], Value]]) -> list[Value]:
    """Run calls in as many threads, all starting at the same moment; their results in order."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Value]) -> Value:
        start.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def alive(name: str) -> list[threading.Thread]:
    """The running threads of a name: ``probe`` of the breakers, ``wakeups`` of those who wait on Redis."""
    return [thread for thread in threading.enumerate() if thread.name == f"idempotency-{name}"]


class Clock:
    """Milliseconds since the epoch, as far as the test says."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self.now = now
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.now

    def advance(self, milliseconds: int) -> None:
        self.now += milliseconds


def elapsed(call: Callable[[], Any]) -> float:
    """How many seconds a call takes."""
    began = time.monotonic()
    call()
    return time.monotonic() - began
