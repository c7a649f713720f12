"""The outcome is written to the host's file while Redis' answer is on its way, which may be another than expected."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest
import redis

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, StoreError, StoreFull
from flask_idempotent.stores import shared as shared_module
from flask_idempotent.stores.shared import SharedStore

from .conftest import Worker
from .making import KEY, ME, OTHER, TTL, claim_of, eventually, payload_of
from .working import Workers, answered_by, cut_off, finish, head_in, key_of, recovered

pytestmark = pytest.mark.redis


class Noting(SharedStore):
    """A store that notes whether an outcome was written early, and does something then."""

    early: bool | None = None
    then: Callable[[], object] = staticmethod(lambda: None)

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        self.early = super().complete_early(claim, payload, ttl_ms)
        self.then()
        return self.early


class Slow(SharedStore):
    """A store that can do nothing at once, like one to whose file another process is writing."""

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "records.sqlite"


@pytest.fixture
def one(worker: Workers, path: Path) -> Worker:
    """A worker of the host."""
    return worker(local=Noting(path))


class Holder:
    """Holds a file as another process would that stops while it writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connections: list[sqlite3.Connection] = []

    def hold(self) -> None:
        self._connections.append(sqlite3.connect(self._path, isolation_level=None))
        self._connections[-1].execute("BEGIN IMMEDIATE")

    def let_go(self) -> None:
        while self._connections:
            self._connections.pop().close()


@pytest.fixture
def holder(path: Path) -> Iterator[Holder]:
    holder = Holder(path)
    yield holder
    holder.let_go()


def here(worker: Worker, key: str = KEY) -> tuple[State, bytes] | None:
    record = worker.local.get(key)
    return None if record is None else (read_head(record).state, read_head(record).owner)


def taken_over(worker: Worker, server: redis.Redis) -> None:
    """Have another host finish under the key, which an operator has freed while the first request runs."""
    server.delete(KEY)
    finish(worker, OTHER)


def test_an_outcome_is_here_before_redis_has_answered_and_owed_when_it_has_not(
    one: Worker, server: redis.Redis
) -> None:
    mine = claim_of()
    one.store.claim(mine)
    one.link.freeze()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(one.store.complete, mine, payload_of(mine, ME), TTL)
        eventually(lambda: here(one) == (State.DONE, ME))
        assert answered_by(one) == ME
        assert not ended.done(), "Redis is still being waited for"
        assert not one.local.is_owed(KEY)
        assert ended.result(10) is True
    assert one.local.is_owed(KEY)
    assert head_in(server) == (State.PENDING, ME)
    recovered(one)
    assert head_in(server) == (State.DONE, ME)


def test_an_outcome_that_cannot_be_written_early_is_written_afterwards(
    worker: Workers, path: Path, server: redis.Redis
) -> None:
    one = worker(local=Slow(path))
    finish(one)
    assert here(one) == head_in(server) == (State.DONE, ME)
    cut_off(one)
    assert answered_by(one) == ME


def test_an_outcome_that_redis_refuses_does_not_stay(one: Worker, worker: Workers, server: redis.Redis) -> None:
    mine = claim_of()
    one.store.claim(mine)
    taken_over(worker(), server)
    assert one.store.complete(mine, payload_of(mine, ME), TTL) is False
    assert isinstance(one.local, Noting)
    assert one.local.early
    assert here(one) is None
    assert answered_by(one) == OTHER


def test_who_is_late_writes_nothing_early(one: Worker, worker: Workers) -> None:
    """Redis is likely to refuse, and until it has, duplicates would get the outcome that it refuses."""
    mine, other = claim_of(lease_ms=1), worker()
    one.store.claim(mine)
    eventually(lambda: isinstance(other.store.claim(claim_of(OTHER)), Claimed))
    other.store.complete(claim_of(OTHER), payload_of(claim_of(OTHER), OTHER), TTL)
    assert one.store.complete(mine, payload_of(mine, ME), TTL) is False
    assert isinstance(one.local, Noting)
    assert one.local.early is False


def test_who_may_be_late_when_redis_has_answered_writes_nothing_early(one: Worker) -> None:
    mine = claim_of(lease_ms=100)
    one.store.claim(mine)
    time.sleep(0.06)
    assert one.store.complete(mine, payload_of(mine, ME), TTL)
    assert isinstance(one.local, Noting)
    assert one.local.early is False


@pytest.mark.parametrize("who", ["the next worker", "a worker that goes through an outage"])
def test_redis_is_told_what_a_worker_has_written_early_that_died_then(
    one: Worker, worker: Workers, path: Path, server: redis.Redis, who: str
) -> None:
    """Else this host would replay it, and another would run it again when the lease is over."""
    other = worker(local=Noting(path))
    if who == "a worker that goes through an outage":
        finish(other, OTHER, key_of(1))
        eventually(lambda: other.store._contact().recovery._has_looked)
    mine = claim_of()
    one.store.claim(mine)
    one.store.close()
    eventually(lambda: one.local.complete_early(mine, payload_of(mine, ME), TTL))  # when nobody else writes
    assert head_in(server) == (State.PENDING, ME)
    if who == "a worker that goes through an outage":
        cut_off(other)
        other.link.open()
    else:
        finish(other, OTHER, key_of(1))
    eventually(lambda: head_in(server) == (State.DONE, ME))
    eventually(lambda: not other.local.is_owed(KEY))
    assert answered_by(worker()) == ME


def test_what_redis_was_not_told_of_is_not_written_early(one: Worker, worker: Workers) -> None:
    """The outcome and its debt go together, whoever dies between them."""
    cut_off(one)
    mine = claim_of()
    one.store.claim(mine)
    one.link.open()
    assert one.store.complete(mine, payload_of(mine, ME), TTL)
    assert isinstance(one.local, Noting)
    assert one.local.early is None
    recovered(one)
    assert answered_by(worker()) == ME


def test_a_full_file_gives_up_no_outcome_that_redis_has_not_yet_taken(worker: Workers, path: Path) -> None:
    """What another worker of the host gives up to make room it takes for a copy."""
    one, other = (worker(local=Noting(path, 400 << 10)) for _ in range(2))
    added = count()

    def add() -> int:
        """One more record, which expires a second after the one before; how many there are."""
        number = next(added)
        claim = claim_of(key=key_of(number))
        eventually(lambda: is_granted(other, claim))
        assert other.store.complete(claim, payload_of(claim, os.urandom(3000)), TTL + 1000 * number)
        return other.local.report().in_memory_size

    held = 0
    while (size := add()) > held:
        held = size
    ttl_ms = TTL + 1000 * (next(added) - 3)  # those that expire next are given up next
    while add() < held - 2:
        pass
    mine = claim_of()
    one.store.claim(mine)
    one.link.freeze()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(one.store.complete, mine, payload_of(mine, ME), ttl_ms)
        eventually(lambda: here(one) == (State.DONE, ME))
        while add() >= held:
            pass
        while add() < held:
            pass
        assert not ended.done()
        assert here(one) == (State.DONE, ME)
        assert not one.local.is_owed(KEY)
        one.link.open()
        assert ended.result(10)
    assert answered_by(other) == ME


def test_a_full_file_gives_up_what_redis_has_forgotten(worker: Workers, path: Path, server: redis.Redis) -> None:
    one = worker(local=Noting(path, 400 << 10))
    one.store.set("idempotency:{empty}", b"", TTL // 2)  # what expires first is looked at first
    for number in range(1000):
        claim = claim_of(key=key_of(number))
        eventually(lambda claim=claim: is_granted(one, claim))
        assert one.store.complete(claim, payload_of(claim, os.urandom(1000)), TTL)
        if number == 600:
            assert one.local.report().in_memory_size < 600, "it is full"
            server.flushall()


def is_granted(worker: Worker, claim: Claim) -> bool:
    """Whether a claim is granted; not while the file's log is too long for one so small, as somebody reads it."""
    try:
        return worker.store.claim(claim) == Claimed(1)
    except StoreFull:
        return False


class Interruption(BaseException):
    """What a timeout of gevent is, or a signal's handler raises."""


@pytest.mark.parametrize("redis_is", ["there for the failure", "away"])
def test_a_request_that_is_interrupted_while_redis_is_asked_can_fail(
    one: Worker, worker: Workers, server: redis.Redis, redis_is: str
) -> None:
    """As the guard does with whatever goes wrong. Here and there it is one state."""

    def interrupt(*_: object) -> None:
        raise Interruption

    mine = claim_of()
    one.store.claim(mine)
    one.link.freeze()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interruption):
            one.store.complete(mine, payload_of(mine, ME), TTL)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert isinstance(one.local, Noting)
    assert one.local.early
    assert here(one) == (State.PENDING, ME)
    if redis_is == "there for the failure":
        one.link.open()
    assert one.store.fail(mine) is True
    assert here(one) == (State.FAILED, ME)
    recovered(one)
    assert head_in(server) == (State.FAILED, ME)
    assert worker().store.claim(claim_of(OTHER)) == Claimed(2)


def test_an_outcome_that_can_neither_be_told_nor_be_owed_is_the_same_everywhere_later(
    one: Worker, worker: Workers, server: redis.Redis, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not be replayed on one host while the request runs again on another."""
    monkeypatch.setattr(shared_module, "BUSY_SECONDS", 0.05)
    monkeypatch.setattr(shared_module, "SETTLING_SECONDS", 0.1)
    mine = claim_of()
    one.store.claim(mine)
    assert isinstance(one.local, Noting)
    one.local.then = holder.hold
    one.link.freeze()
    with pytest.raises(StoreError):
        one.store.complete(mine, payload_of(mine, ME), TTL)
    assert one.local.early
    one.local.then = lambda: None
    holder.let_go()
    one.link.open()
    eventually(lambda: not one.store._contact().undone)
    recovered(one)
    seen = [each.store.claim(claim_of(OTHER)) for each in (one, worker())]
    assert all(isinstance(found, Found) for found in seen)
    one_state, other_state = (read_head(found.record)[:3] for found in seen if isinstance(found, Found))
    assert one_state == other_state


def test_a_refused_outcome_that_cannot_be_removed_is_not_replayed_for_long(
    one: Worker,
    worker: Workers,
    server: redis.Redis,
    holder: Holder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_module, "BUSY_SECONDS", 0.05)
    mine = claim_of()
    one.store.claim(mine)
    taken_over(worker(), server)
    assert isinstance(one.local, Noting)
    one.local.then = holder.hold
    with suppress(StoreError):
        one.store.complete(mine, payload_of(mine, ME), TTL)
    assert here(one) == (State.DONE, ME), "the file is held"
    holder.let_go()
    eventually(lambda: answered_by(one) == OTHER)
