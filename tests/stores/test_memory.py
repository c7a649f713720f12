"""The memory store's own promises: a clock it is given, room that is limited, and costs that do not grow."""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask_caching import Cache
from flask_caching.backends.simplecache import SimpleCache

from flask_idempotent.core.record import HEAD_SIZE, State, read_head
from flask_idempotent.core.store import Claimed, Found, StoreFull, TimedOut
from flask_idempotent.stores.memory import MemoryStore, RecordCache, steady_clock

from .conftest import memory
from .making import DIFFERENT, KEY, OTHER, TTL, Clock, claim_of, payload_of


def numbered(number: int) -> str:
    return f"idempotency:{{{number}}}"


def fill(store: MemoryStore, size: int, ttl_ms: int = TTL) -> None:
    for number in range(size):
        assert store.claim(claim_of(key=numbered(number), ttl_ms=ttl_ms)) == Claimed(1)


def test_the_lease_ends_at_its_deadline_and_not_before(clock: Clock) -> None:
    store = memory(clock=clock)
    store.claim(claim_of(OTHER, lease_ms=1000))
    clock.advance(999)
    found = store.claim(claim_of())
    assert found == Found(found.record, clock.now) if isinstance(found, Found) else False
    assert read_head(found.record).deadline == clock.now + 1
    clock.advance(1)
    assert store.claim(claim_of()) == Claimed(2)


def test_a_renewal_counts_from_its_own_time(clock: Clock) -> None:
    store = memory(clock=clock)
    mine = claim_of(lease_ms=1000)
    store.claim(mine)
    clock.advance(900)
    store.renew([mine])
    clock.advance(999)
    assert isinstance(store.claim(claim_of(OTHER)), Found)
    clock.advance(1)
    assert store.claim(claim_of(OTHER)) == Claimed(2)


@pytest.mark.parametrize("ended", ["claimed", "failed", "done"])
def test_a_record_ends_with_its_retention_and_not_before(clock: Clock, ended: str) -> None:
    store = memory(clock=clock)
    mine = claim_of(lease_ms=10, ttl_ms=1000)
    store.claim(mine)
    if ended == "failed":
        clock.advance(500)
        store.fail(mine)
        clock.advance(-500)
    elif ended == "done":
        store.complete(mine, payload_of(mine), 1000)
    clock.advance(999)
    stranger = claim_of(OTHER, fingerprint=DIFFERENT)
    assert isinstance(store.claim(stranger), Found)
    assert store.take(KEY) is not None
    clock.advance(1)
    assert store.get(KEY) is None
    assert store.take(KEY) is None
    assert store.claim(stranger) == Claimed(1)


def test_the_clock_does_not_jump_when_the_machines_time_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time() * 1000
    clock = steady_clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert abs(clock() - before) < 5000


def test_a_full_store_refuses_a_new_key_and_says_what_to_do(clock: Clock) -> None:
    store = memory(3, clock)
    fill(store, 3)
    with pytest.raises(StoreFull, match="IDEMPOTENCY_CACHE_THRESHOLD") as caught:
        store.claim(claim_of(OTHER, "idempotency:{new}"))
    assert caught.value.outage is False
    with pytest.raises(StoreFull):
        store.set("idempotency:{value}", b"", TTL)
    assert store.get("idempotency:{new}") is store.get("idempotency:{value}") is None


def test_a_store_may_be_bounded_by_bytes_as_well(clock: Clock) -> None:
    store = MemoryStore(RecordCache(100, limit_bytes=10 * HEAD_SIZE), clock)
    fill(store, 10)
    with pytest.raises(StoreFull, match="limit of 650 bytes"):
        store.claim(claim_of(key=numbered(10)))
    first = claim_of(key=numbered(0))
    assert store.complete(first, payload_of(first, b"x" * 500), TTL)  # what runs can end
    for number in range(9):
        store.delete(numbered(number + 1))
    with pytest.raises(StoreFull):
        store.set(numbered(10), bytes(200), TTL)
    store.set(numbered(0), b"", TTL)
    store.set(numbered(10), bytes(650), TTL)
    clock.advance(TTL)
    store.set(numbered(11), bytes(650), TTL)
    assert store.report().in_memory_size == 1


@pytest.mark.parametrize("state", [State.PENDING, State.FAILED, State.DONE])
def test_a_full_store_never_drops_a_live_record(clock: Clock, state: State) -> None:
    store = memory(50, clock)
    for number in range(50):
        mine = claim_of(key=numbered(number), lease_ms=10, ttl_ms=1000 + number)
        store.claim(mine)
        if state is State.DONE:
            store.complete(mine, payload_of(mine), 1000 + number)
        elif state is State.FAILED:
            store.fail(mine)
    clock.advance(999)
    for number in range(50, 60):
        with pytest.raises(StoreFull):
            store.claim(claim_of(key=numbered(number)))
    for number in range(50):
        record = store.get(numbered(number))
        assert record is not None
        assert read_head(record).state is state


def test_in_a_full_store_the_requests_that_run_go_on_and_end_as_ever(clock: Clock) -> None:
    store = memory(4, clock)
    fill(store, 4)
    first, second, third, fourth = (claim_of(key=numbered(number)) for number in range(4))
    clock.advance(10_000)
    assert store.renew([first, second, third, fourth]) == [True] * 4
    assert store.complete(first, payload_of(first, b"x" * 5000), TTL)
    assert store.fail(second)
    assert store.claim(claim_of(OTHER, second.key)) == Claimed(2)
    store.set(third.key, b"value", TTL)
    assert store.forget(fourth)
    assert store.claim(claim_of(OTHER, "idempotency:{new}")) == Claimed(1)


@pytest.mark.parametrize("how", ["expired", "forgotten", "deleted"])
def test_what_is_gone_makes_room_for_just_as_much(clock: Clock, how: str) -> None:
    store = memory(10, clock)
    fill(store, 7)
    gone = [claim_of(key=numbered(number), lease_ms=10, ttl_ms=100) for number in (7, 8, 9)]
    for claim in gone:
        store.claim(claim)
        if how == "forgotten":
            store.forget(claim)
        elif how == "deleted":
            assert store.delete(claim.key)
    clock.advance(100 if how == "expired" else 0)
    for number in (20, 21, 22):
        assert store.claim(claim_of(key=numbered(number))) == Claimed(1)
    with pytest.raises(StoreFull):
        store.claim(claim_of(key=numbered(23)))
    assert all(store.get(numbered(number)) for number in range(7))


def test_a_record_that_was_prolonged_outlives_its_first_end(clock: Clock) -> None:
    store = memory(2, clock)
    mine = claim_of(lease_ms=100, ttl_ms=100)
    store.claim(mine)
    clock.advance(50)
    store.renew([claim_of(lease_ms=1000)])
    clock.advance(100)
    assert store.claim(claim_of(key=numbered(1), lease_ms=10, ttl_ms=10)) == Claimed(1)
    assert store.get(KEY) is not None
    clock.advance(10)
    assert store.claim(claim_of(key=numbered(2))) == Claimed(1)
    assert store.get(KEY) is not None


def test_a_record_that_was_shortened_makes_room_at_its_new_end(clock: Clock) -> None:
    store = memory(1, clock)
    store.claim(claim_of())
    store.complete(claim_of(), payload_of(claim_of()), 100)
    clock.advance(100)
    assert store.claim(claim_of(OTHER, numbered(1))) == Claimed(1)


def grown(work: Callable[[int], Any], times: int) -> int:
    """By how many bytes the heap grows while something is done over and over."""
    for number in range(100):
        work(number)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(times):
            work(number)
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("what", ["renewing", "setting", "waiting and forgetting", "letting expire"])
def test_memory_does_not_grow_with_the_number_of_writes(clock: Clock, what: str) -> None:
    store = memory(1000, clock)
    store.claim(claim_of())

    def write(number: int) -> None:
        clock.advance(1000)
        if what == "renewing":
            assert store.renew([claim_of(lease_ms=60_000, ttl_ms=1)]) == [True]
        elif what == "setting":
            store.set(KEY, b"value", TTL)
        else:
            mine = claim_of(key=numbered(number), lease_ms=500, ttl_ms=500)
            assert store.claim(mine) == Claimed(1)
            if what == "waiting and forgetting":
                assert store.wait(mine.key, 0) == TimedOut()
                assert store.forget(mine)

    assert grown(write, 10_000) < 400_000  # 10,000 entries of any kind would take more


class Instant(int):
    """A time that counts how often it is compared with another."""

    compared = 0

    def _counting(name: str) -> Any:  # type: ignore[misc]
        def compare(self: Instant, other: object) -> Any:
            Instant.compared += 1
            return getattr(int, name)(self, other)

        return compare

    __lt__, __le__, __gt__, __ge__, __eq__ = map(_counting, ("__lt__", "__le__", "__gt__", "__ge__", "__eq__"))
    __hash__ = int.__hash__

    def __add__(self, other: int) -> Instant:
        return Instant(int(self) + int(other))


def test_a_hundred_thousand_records_do_not_make_an_operation_slow(clock: Clock) -> None:
    size = 100_000
    store = memory(size, lambda: Instant(clock.now))
    for number in range(size - 1):
        store.set(numbered(number), b"", 10 * TTL + (number * 7919) % 100_003)
    last, new = claim_of(key=numbered(size)), claim_of(key=numbered(size + 1))

    def refused() -> None:
        with pytest.raises(StoreFull):
            store.claim(new)

    operations: list[Callable[[], Any]] = [
        lambda: store.claim(last),
        refused,
        lambda: store.claim(claim_of(OTHER, last.key)),
        lambda: store.renew([last]),
        lambda: store.complete(last, payload_of(last), TTL),
        lambda: store.get(last.key),
        lambda: store.set(last.key, b"value", 20 * TTL),
        lambda: store.delete(last.key),
        lambda: store.claim(new),
    ]
    for operation in operations:
        Instant.compared = 0
        operation()
        assert Instant.compared < 2000  # some walks through a heap; one look at each record would be 100,000


def test_waiting_costs_no_polling_and_leaves_nothing_behind(clock: Clock) -> None:
    store = memory(clock=clock)
    store.claim(claim_of())
    gc.collect()
    before = sum(isinstance(thing, threading.Event) for thing in gc.get_objects())
    asked = clock.asked
    for _ in range(20):
        assert store.wait(KEY, 5) == TimedOut()
    assert clock.asked - asked <= 40
    gc.collect()
    assert sum(isinstance(thing, threading.Event) for thing in gc.get_objects()) == before


def test_the_report_counts_what_is_alive(clock: Clock) -> None:
    store = memory(10, clock)
    fill(store, 3)
    store.claim(claim_of(key=numbered(3), lease_ms=10, ttl_ms=100))
    assert store.report().in_memory_size == 4
    clock.advance(100)
    assert store.report().in_memory_size == 3
    assert (store.report().cache_type, store.report().outage, store.report().waiting) == ("memory", None, 0)


def test_a_record_is_taken_with_what_is_left_of_its_retention(clock: Clock) -> None:
    store = memory(clock=clock)
    store.claim(claim_of(ttl_ms=60_000))
    clock.advance(1000)
    taken = store.take(KEY)
    assert taken is not None
    assert taken[1] == 59_000
    assert len(taken[0]) == HEAD_SIZE


def test_the_backend_is_made_by_flask_caching_with_its_own_limit() -> None:
    app = Flask(__name__)
    cache = Cache(config={"CACHE_TYPE": f"{RecordCache.__module__}.RecordCache", "CACHE_THRESHOLD": 2})
    cache.init_app(app)
    backend = app.extensions["cache"][cache]
    assert isinstance(backend, RecordCache)
    assert isinstance(backend, SimpleCache)
    store = MemoryStore(backend)
    fill(store, 2)
    with pytest.raises(StoreFull, match="limit of 2 records"):
        store.claim(claim_of())
