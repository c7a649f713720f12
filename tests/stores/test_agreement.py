"""The Lua scripts and the machine's table are one specification: what the one does, the other does, step by step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_idempotent.core.machine import Standing, standing
from flask_idempotent.core.record import DEADLINE_SIZE, HEAD_SIZE, MAX_ATTEMPT, State
from flask_idempotent.core.store import Claim, Claimed, Found
from flask_idempotent.stores.memory import MemoryStore
from flask_idempotent.stores.redis import RedisStore

from .conftest import memory
from .making import DIFFERENT, FUTURE, ME, OTHER, PAST, SAME, THIRD, claim_of, payload_of
from .topologies import Topology

pytestmark = pytest.mark.redis

SLACK = 5000  # between the two clocks, and between the two calls
STRANGER = b"x" * 16
_numbers = itertools.count()

# Leases and retentions are seconds apart, so that a wrong one shows; nothing runs out by itself within a test.
LEASES, TTLS = (60_000, 120_000), (20_000, 240_000, 600_000)
REQUESTS = [(ME, SAME), (OTHER, SAME), (THIRD, DIFFERENT)]  # a token belongs to one request
claims = st.builds(
    lambda request, **terms: claim_of(request[0], fingerprint=request[1], **terms),
    st.sampled_from(REQUESTS),
    lease_ms=st.sampled_from(LEASES),
    ttl_ms=st.sampled_from(TTLS),
    resume=st.booleans(),
)
# Records that the scripts and the parser must judge alike: nearly right in every field.
digits = st.sampled_from(
    [b"%013d" % PAST, b"%013d" % FUTURE, b"+000000000001", b" 12345678901 ", b"1_2345678901a", b"\0" * 13]
)
planted = st.builds(
    lambda *parts: b"".join(parts),
    st.sampled_from([b"\x01", b"\x01", b"\x01", b"\x00", b"\x02"]),
    st.sampled_from([b"P", b"F", b"D", b"P", b"F", b"D", b"X", b"?", b"p"]),
    st.sampled_from([b"\x00\x01", b"\x00\xff", b"\x01\x00", b"\x00\x00", b"\xff\xfe", b"\xff\xff"]),
    st.sampled_from([ME + SAME, STRANGER + SAME, STRANGER + DIFFERENT, b"?" * 16 + SAME]),
    digits,
    st.sampled_from([b"", b"", b"payload", b"\x00"]),
).flatmap(lambda raw: st.sampled_from([raw] * 6 + [raw[:64], raw[:20], raw[:1], b""]))
steps = st.one_of(
    st.tuples(st.just("claim"), claims),
    st.tuples(st.just("claim"), claims),
    st.tuples(st.just("renew"), claims),
    st.tuples(st.just("complete"), claims, st.sampled_from(TTLS)),
    st.tuples(st.just("fail"), claims),
    st.tuples(st.just("forget"), claims),
    st.tuples(st.just("lapse")),
    st.tuples(st.just("vanish")),
    st.tuples(st.just("plant"), planted, st.sampled_from(TTLS)),
)


@dataclass
class Pair:
    """The same operations on a memory store, which calls the machine, and on Redis."""

    memory: MemoryStore
    shared: RedisStore
    client: redis.Redis
    key: str
    attempts: dict[bytes, int] = field(default_factory=dict)

    def apply(self, step: tuple[Any, ...]) -> None:
        name, *rest = step
        if name in ("claim", "renew", "complete", "fail", "forget"):
            claim, *more = rest
            known = 1 if name == "claim" else self.attempts.get(claim.owner, 1)
            here, there = self._both(name, claim._replace(key=self.key, attempt=known), *more)
            assert _seen(here) == _seen(there), step
            if isinstance(here, Claimed):
                self.attempts[claim.owner] = here.attempt
        elif name == "lapse":
            self._lapse()
        elif name == "vanish":
            assert self.memory.delete(self.key) == self.shared.delete(self.key)
        else:
            raw = rest[0]
            self.attempts[raw[4:20]] = int.from_bytes(raw[2:4], "big")
            self.memory.set(self.key, *rest)
            self.shared.set(self.key, *rest)
        self._compare(step)

    def _both(self, name: str, claim: Claim, *more: Any) -> list[Any]:
        calls: dict[str, Callable[[Any], Any]] = {
            "claim": lambda store: store.claim(claim),
            "renew": lambda store: store.renew([claim]),
            "complete": lambda store: store.complete(claim, payload_of(claim), *more),
            "fail": lambda store: store.fail(claim),
            "forget": lambda store: store.forget(claim),
        }
        return [calls[name](store) for store in (self.memory, self.shared)]

    def _lapse(self) -> None:
        """Let the lease that is running be over, in both."""
        taken = self.memory.take(self.key)
        if taken is None or standing(taken[0], claim_of(b"n" * 16), 0) is not Standing.RUNNING:
            return
        ended = b"%013d" % PAST
        self.memory.set(self.key, taken[0][: HEAD_SIZE - DEADLINE_SIZE] + ended, taken[1])
        self.client.setrange(self.key, HEAD_SIZE - DEADLINE_SIZE, ended)

    def _compare(self, step: tuple[Any, ...]) -> None:
        taken = self.memory.take(self.key)
        there, left = self.client.get(self.key), self.client.pttl(self.key)
        here, kept = taken or (None, -2)
        assert _timeless(here) == _timeless(there), step
        assert abs(kept - left) < SLACK, step
        if here and _timed(here):
            ends = [int(raw[HEAD_SIZE - DEADLINE_SIZE : HEAD_SIZE]) for raw in (here, there)]
            assert abs(ends[0] - ends[1]) < SLACK, step


def _timed(record: bytes) -> bool:
    return record[HEAD_SIZE - DEADLINE_SIZE : HEAD_SIZE].isdigit() and len(record) >= HEAD_SIZE


def _timeless(record: bytes | None) -> bytes | None:
    """A record without the deadline, in which two clocks differ; whole where the deadline is none."""
    if record is None or not _timed(record):
        return record
    return record[: HEAD_SIZE - DEADLINE_SIZE] + record[HEAD_SIZE:]


def _seen(answer: Any) -> Any:
    return ("found", _timeless(answer.record)) if isinstance(answer, Found) else answer


@pytest.fixture
def pair(_topologies: Callable[[str], Topology]) -> Callable[[], Pair]:
    at = _topologies("redis")
    at.client.flushall()
    return lambda: Pair(memory(), at.first, at.client, f"agreement:{{{next(_numbers)}}}")


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(steps, min_size=1, max_size=20))
def test_redis_and_the_machine_agree_on_any_sequence_of_steps(
    pair: Callable[[], Pair], sequence: list[tuple[Any, ...]]
) -> None:
    both = pair()
    for step in sequence:
        both.apply(step)


STANDS = [
    pytest.param((version, state, attempt, owner, fingerprint, deadline), id=f"{version}{state}{attempt}-{name}")
    for version in (0, 1, 2)
    for state in "PFDX"
    for attempt in (0, 1, MAX_ATTEMPT)
    for name, owner, fingerprint, deadline in [
        ("own", ME, SAME, FUTURE),
        ("own-over", ME, SAME, PAST),
        ("same", OTHER, SAME, FUTURE),
        ("same-over", OTHER, SAME, PAST),
        ("foreign", OTHER, DIFFERENT, FUTURE),
        ("foreign-over", OTHER, DIFFERENT, PAST),
    ]
]


@pytest.mark.parametrize("stands", STANDS)
def test_redis_and_the_machine_agree_on_every_standing(
    pair: Callable[[], Pair], stands: tuple[int, str, int, bytes, bytes, int]
) -> None:
    version, state, attempt, owner, fingerprint, deadline = stands
    raw = bytes([version]) + state.encode() + attempt.to_bytes(2, "big") + owner + fingerprint + b"%013d" % deadline
    raw += b"payload" if state == State.DONE.value.decode() else b""
    for resume in (True, False):
        for event in ("claim", "renew", "complete", "fail", "forget"):
            both = pair()
            more = (240_000,) if event == "complete" else ()
            both.apply(("plant", raw, 240_000))
            both.apply((event, claim_of(resume=resume, ttl_ms=600_000), *more))
