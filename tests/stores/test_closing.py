"""A store can be given back, and taken up again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from flask_idempotent.core.store import Claimed, Found, OnOutage, StoreError
from flask_idempotent.stores import wakeups

from ..servers.standalone import RedisProcess
from .conftest import Connect, Place
from .making import KEY, OTHER, THIRD, TTL, alive, at_once, claim_of, eventually, payload_of
from .test_waiting import LONG, waiting
from .working import Workers, cut_off, head_in, key_of


def test_a_closed_store_keeps_its_records_and_can_be_used_again(place: Place) -> None:
    place.store.claim(claim_of())
    place.store.set(key_of(1), b"value", TTL)
    for _ in range(2):
        place.store.close()
        place.store.close()
        assert isinstance(place.store.claim(claim_of(OTHER)), Found)
        assert place.store.renew([claim_of()]) == [True]
        assert place.store.get(key_of(1)) == b"value"
    place.store.close()
    assert place.store.complete(claim_of(), payload_of(claim_of()), TTL)
    assert isinstance(place.elsewhere.wait(KEY, LONG), Found)


@pytest.mark.redis
def test_closing_gives_back_every_connection(connect: Connect, redis_server: RedisProcess, server: redis.Redis) -> None:
    eventually(lambda: not alive("wakeups"))  # of the tests before
    before = {each["id"] for each in server.client_list()}
    store = connect(redis_server.port)
    store.claim(claim_of())
    at_once([lambda: store.claim(claim_of(OTHER))] * 10)
    assert {each["id"] for each in server.client_list()} > before
    store.close()
    eventually(lambda: {each["id"] for each in server.client_list()} <= before, within=2)


@pytest.mark.redis
def test_closing_ends_the_thread_that_listens(
    connect: Connect, redis_server: RedisProcess, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    eventually(lambda: not alive("wakeups"))
    monkeypatch.setattr(wakeups, "IDLE_SECONDS", 3.0)
    before = {each["id"] for each in server.client_list()}
    store = connect(redis_server.port)
    store.claim(claim_of())
    store.wait(KEY, 10)
    store.close()
    eventually(lambda: not alive("wakeups"), within=1.5)
    eventually(lambda: {each["id"] for each in server.client_list()} <= before, within=1)
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, store, 1)
        store.forget(claim_of())
        future.result(LONG / 2000)
    store.close()


@pytest.mark.redis
def test_closing_does_not_strand_those_who_wait(connect: Connect, redis_server: RedisProcess) -> None:
    store, other = connect(redis_server.port), connect(redis_server.port)
    other.claim(claim_of())
    with redis_server.client() as server, ThreadPoolExecutor(3) as pool:
        futures = waiting(pool, store, 3)
        eventually(lambda: server.pubsub_numsub(KEY)[0][1])
        store.close()
        other.complete(claim_of(), payload_of(claim_of()), TTL)
        assert [isinstance(future.result(LONG / 2000), Found) for future in futures] == [True] * 3


@pytest.mark.redis
def test_closing_ends_the_probe_though_redis_is_away(worker: Workers) -> None:
    one = worker()
    cut_off(one)
    one.store.claim(claim_of())
    assert alive("probe")
    one.store.close()
    eventually(lambda: not alive("probe"), within=1)


@pytest.mark.redis
def test_what_the_probe_asks_while_the_store_is_closed_leaves_no_connection(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between its look whether it may go on and its question is too short to be met by chance."""
    one = worker()
    one.store.claim(claim_of())
    ping, asking, closed = one.store._shared.ping, threading.Event(), threading.Event()

    def late_ping() -> None:
        asking.set()
        assert closed.wait(10)
        ping()

    monkeypatch.setattr(one.store._shared, "ping", late_ping)
    assert asking.wait(10)
    one.store.close()
    closed.set()
    eventually(lambda: not alive("probe"), within=2)
    assert [pool._made for pool in one.store._shared.nodes._pools().values()] == [0]


@pytest.mark.redis
@pytest.mark.parametrize("policy", OnOutage)
def test_a_store_that_was_closed_in_an_outage_finds_redis_again(
    worker: Workers, server: redis.Redis, policy: OnOutage
) -> None:
    one = worker()
    cut_off(one)
    one.store.close()
    one.link.open()

    def taken() -> bool:
        try:
            return isinstance(one.store.claim(claim_of(THIRD, on_outage=policy)), Claimed)
        except StoreError:
            return False

    eventually(taken, within=2)
    eventually(lambda: head_in(server), within=2)
    eventually(lambda: one.store.report().redis_available, within=2)


@pytest.mark.redis
def test_closing_and_going_on_does_not_multiply_the_probe(worker: Workers) -> None:
    one = worker()
    one.link.cut()
    for number in range(6):
        one.store.claim(claim_of(key=key_of(number)))
        one.store.close()
    one.store.claim(claim_of())
    eventually(lambda: len(alive("probe")) == 1, within=1)
