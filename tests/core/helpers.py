"""What the tests of the core share: a clock that the test moves, claims in one line, and polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from hypothesis import settings

from flask_idempotent.core.record import FINGERPRINT_SIZE, OWNER_SIZE, Head, State, StoredResponse, pack_payload
from flask_idempotent.core.store import Claim, Terms

NOW = 1_800_000_000_000  # milliseconds since the epoch
MINE, THEIRS = b"m" * OWNER_SIZE, b"t" * OWNER_SIZE
REQUEST, OTHER_REQUEST = b"r" * FINGERPRINT_SIZE, b"o" * FINGERPRINT_SIZE
TERMS = Terms(lease_ms=30_000, ttl_ms=600_000)
CREATED = StoredResponse("201 CREATED", (("Content-Type", "application/json"), ("Location", "/orders/7")), b'{"id":7}')

moderate = settings(deadline=None, max_examples=150)


class Clock:
    """Milliseconds since the epoch, as far as the test says."""

    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, ms: int) -> None:
        self.now += ms


def a_claim(key: str = "k", owner: bytes = MINE, fingerprint: bytes = REQUEST, attempt: int = 1, **terms: Any) -> Claim:
    """A claim with the usual terms but for those given."""
    conditions = {"lease_ms": TERMS.lease_ms, "ttl_ms": TERMS.ttl_ms} | terms
    return Claim(key, owner, fingerprint, Terms(**conditions), attempt)


def a_record(
    state: State,
    *,
    owner: bytes = THEIRS,
    fingerprint: bytes = REQUEST,
    attempt: int = 1,
    deadline: int = NOW,
    response: StoredResponse = CREATED,
    compress_over: int = 1024,
) -> bytes:
    """The bytes of a record."""
    head = Head(state, attempt, owner, fingerprint, deadline)
    return head.pack() + (pack_payload(head.pack(), response, compress_over) if state is State.DONE else b"")


def flip(record: bytes, bit: int) -> bytes:
    """The same bytes with one bit changed."""
    changed = bytearray(record)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def until(met: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for something that another thread is about to do."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)
