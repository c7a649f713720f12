"""The contract of every store: duplicates that wait for a running request."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from flask_idempotent.core.record import HEAD_SIZE, State, read_head
from flask_idempotent.core.store import Claimed, Found, Gone, Store, TimedOut

from .conftest import Place
from .making import DIFFERENT, KEY, OTHER, TTL, claim_of, elapsed, payload_of, record_of
from .test_contract import do

LONG = 8_000  # far beyond what a test takes: an answer within half of it was no time-out


def waiting(pool: ThreadPoolExecutor, store: Store, number: int) -> list[Future[Found | Gone | TimedOut]]:
    """Start waiters, and see them all under way."""
    started = threading.Barrier(number + 1)

    def wait() -> Found | Gone | TimedOut:
        started.wait(30)
        return store.wait(KEY, LONG)

    futures = [pool.submit(wait) for _ in range(number)]
    started.wait(30)
    return futures


@pytest.mark.parametrize(("event", "state"), [("complete", State.DONE), ("fail", State.FAILED), ("forget", None)])
@pytest.mark.parametrize("by", ["here", "elsewhere"])
def test_forty_waiters_wake_when_the_request_ends(place: Place, event: str, state: State | None, by: str) -> None:
    runner = place.store if by == "here" else place.elsewhere
    runner.claim(claim_of())
    with ThreadPoolExecutor(40) as pool:
        futures = waiting(pool, place.store, 40)
        assert not any(future.done() for future in futures)
        do(runner, event, claim_of())
        answers = [future.result(LONG / 2000) for future in futures]
    if state is None:
        assert answers == [Gone()] * 40
    for answer in answers if state else []:
        assert isinstance(answer, Found)
        assert read_head(answer.record).state is state
        assert answer.record[HEAD_SIZE:] == (payload_of(claim_of()) if state is State.DONE else b"")


@pytest.mark.parametrize("raw", [None, record_of(State.DONE), record_of(State.FAILED), b"damaged"])
def test_there_is_no_wait_where_nothing_is_running(place: Place, raw: bytes | None) -> None:
    if raw is not None:
        place.elsewhere.set(KEY, raw, TTL)
    answer = place.store.wait(KEY, LONG)
    assert answer == Gone() if raw is None else isinstance(answer, Found)
    assert raw is None or answer.record == raw


def test_an_empty_value_is_found_and_not_gone(place: Place) -> None:
    place.elsewhere.set(KEY, b"", TTL)
    assert isinstance(place.store.wait(KEY, LONG), Found)


@pytest.mark.parametrize("timeout_ms", [0, 1, 200])
def test_a_waiter_gives_up_in_time_and_frees_nothing(place: Place, timeout_ms: int) -> None:
    place.elsewhere.claim(claim_of(OTHER))
    before = place.elsewhere.get(KEY)
    answers = []
    took = elapsed(lambda: answers.append(place.store.wait(KEY, timeout_ms)))
    assert answers == [TimedOut()]
    assert timeout_ms / 1000 <= took + 0.01
    assert took < timeout_ms / 1000 + 2
    assert place.store.get(KEY) == place.elsewhere.get(KEY) == before
    assert isinstance(place.store.claim(claim_of()), Found)
    assert place.elsewhere.complete(claim_of(OTHER), payload_of(claim_of(OTHER)), TTL) is True


def test_waiters_are_not_woken_by_a_renewal_nor_by_a_claim_that_is_refused(place: Place) -> None:
    place.store.claim(claim_of())
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, place.store, 1)
        end = time.monotonic() + 0.15
        while time.monotonic() < end:
            place.store.renew([claim_of()])
            place.store.claim(claim_of(OTHER, fingerprint=DIFFERENT))
            assert not future.done()
        place.store.forget(claim_of())
        assert future.result(LONG / 2000) == Gone()


def test_a_waiter_sees_the_outcome_of_the_worker_that_took_over(place: Place) -> None:
    place.store.claim(claim_of(OTHER, lease_ms=1))
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, place.store, 1)
        while not isinstance(place.store.claim(claim_of()), Claimed):
            time.sleep(0.001)
        assert place.store.complete(claim_of(attempt=2), payload_of(claim_of(attempt=2)), TTL)
        answer = future.result(LONG / 2000)
    assert isinstance(answer, Found)
    assert read_head(answer.record).attempt == 2


def test_a_waiter_is_told_when_the_worker_has_died_and_nobody_took_over(place: Place) -> None:
    place.elsewhere.claim(claim_of(OTHER, lease_ms=100))
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, place.store, 1)
        answer = future.result(LONG / 2000)
    assert isinstance(answer, Found)
    assert read_head(answer.record).owner == OTHER
    assert isinstance(place.store.claim(claim_of()), Claimed)


def test_waiters_for_one_key_are_not_woken_by_another(place: Place) -> None:
    other = claim_of(OTHER, "idempotency:{other}")
    place.store.claim(claim_of())
    place.store.claim(other)
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, place.store, 1)
        place.store.complete(other, payload_of(other), TTL)
        place.store.delete(other.key)
        assert not future.done()
        place.store.complete(claim_of(), payload_of(claim_of()), TTL)
        assert isinstance(future.result(LONG / 2000), Found)
