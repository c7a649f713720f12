"""A Redis that fails over under Sentinel: the store finds the new master, and none but the master."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

import pytest

from flask_idempotent.config import Settings
from flask_idempotent.core.store import Claim, Claimed, Found, OnOutage, StoreError
from flask_idempotent.stores import nodes
from flask_idempotent.stores.redis import RedisStore

from ..servers.process import until
from ..servers.sentinel import SentinelSet
from .making import KEY, OTHER, TTL, alive, at_once, claim_of, eventually, payload_of
from .test_waiting import LONG, waiting
from .topologies import sentinel_settings, store_of

pytestmark = pytest.mark.redis

BUDGET = 0.5  # seconds for an answer
WITHIN = 15.0  # seconds for a failover on a busy machine; 2 on a quiet one
Stores = Callable[..., RedisStore]
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def _set(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    servers = SentinelSet(tmp_path_factory.mktemp("sentinel-set")).start()
    yield servers
    servers.stop()


@pytest.fixture
def sentinel_set(_set: SentinelSet) -> Iterator[SentinelSet]:
    """A healthy set, which is mended after the test."""
    _set.flush()
    yield _set
    for process in (*_set.servers, *_set.sentinels):
        if process.running:
            process.thaw()
        else:
            process.launch()
            process.await_ready()
    _set.await_healthy()


@pytest.fixture
def connect(sentinel_set: SentinelSet) -> Iterator[Stores]:
    """Makes stores, each as a worker of its own has it."""
    made: list[RedisStore] = []

    def connect(**settings: Any) -> RedisStore:
        terms = Settings(local_tier=None, on_outage=OnOutage.REJECT, store_timeout=BUDGET, **settings)
        made.append(store_of(sentinel_settings(sentinel_set), terms))
        return made[-1]

    yield connect
    for store in made:
        store.close()
    eventually(lambda: not alive("wakeups"))


_numbers = count()


def fresh_claim() -> Claim:
    number = next(_numbers)
    return claim_of(number.to_bytes(16), f"idempotency:{{fresh {number}}}")


def unless_away(call: Callable[[], Answer]) -> Answer | None:
    """What a call gives; None in an outage."""
    try:
        return call()
    except StoreError as error:
        if not error.outage:
            raise
        time.sleep(0.02)
        return None


def goes_on(store: RedisStore) -> None:
    """Wait until the store takes new claims."""
    until(lambda: unless_away(lambda: store.claim(fresh_claim())), "a claim", within=WITHIN)


def test_when_the_master_is_killed_everything_goes_on_and_nothing_acknowledged_is_lost(
    sentinel_set: SentinelSet, connect: Stores
) -> None:
    store, mine = connect(min_replicas=1), claim_of()
    goes_on(store)  # a replica that has just come up may not have followed in time yet
    store.claim(mine)
    acknowledged: list[Claim] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            claim = fresh_claim()
            if unless_away(lambda claim=claim: store.claim(claim)):
                acknowledged.append(claim)

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(work) for _ in range(3)]
        try:
            until(lambda: len(acknowledged) > 50, "claims")
            old = sentinel_set.kill_master()
            before = len(acknowledged)
            until(lambda: len(acknowledged) > before + 50, "claims after the failover", within=WITHIN)
        finally:
            stop.set()
        for worker in workers:
            worker.result(WITHIN)
    assert store.renew([mine]) == [True]
    assert store.complete(mine, payload_of(mine), TTL)
    master = sentinel_set.await_failover(old)
    with master.client() as client:
        lost = [claim.key for claim in acknowledged if not client.exists(claim.key)]
    assert lost == []


def test_those_who_wait_after_a_failover_are_woken_by_the_new_master(
    sentinel_set: SentinelSet, connect: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect()
    store.wait(KEY, 100)  # listens to the old one
    master = sentinel_set.await_failover(sentinel_set.kill_master())
    goes_on(store)
    store.claim(claim_of())
    with ThreadPoolExecutor(5) as pool:
        waiters = waiting(pool, store, 5)
        with master.client() as client:
            until(lambda: client.pubsub_numsub(KEY)[0][1] or not alive("wakeups"), "somebody who listens, or cannot")
        store.complete(claim_of(), payload_of(claim_of()), TTL)
        answers = [waiter.result(LONG / 2000) for waiter in waiters]
    assert all(isinstance(answer, Found) for answer in answers)


def test_a_frozen_master_that_thaws_is_not_the_master_for_anybody(sentinel_set: SentinelSet, connect: Stores) -> None:
    busy, idle, absent = connect(), connect(), connect()
    for store in (busy, idle):
        at_once([lambda store=store: store.claim(fresh_claim())] * 4)
    old = sentinel_set.freeze_master()
    goes_on(busy)
    new = sentinel_set.await_failover(old)
    old.thaw()  # for some seconds it takes itself for the master, and takes claims
    claims = []
    for store in (busy, idle, absent):
        claims.append(fresh_claim())
        assert store.claim(claims[-1]) == Claimed(1)
    with new.client() as client:
        assert [client.exists(claim.key) for claim in claims] == [1, 1, 1]


def test_a_demoted_master_is_left_at_once(
    sentinel_set: SentinelSet, connect: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 60.0)  # nobody asks the sentinels of his own accord
    store = connect()
    store.claim(claim_of())
    old = sentinel_set.master()
    with sentinel_set.sentinels[0].client() as client:
        client.execute_command("SENTINEL", "FAILOVER", "mymaster")
    sentinel_set.await_failover(old)
    sentinel_set.await_healthy()
    with old.client() as client:
        assert client.info("replication")["role"] == "slave"
        client.config_resetstat()
        assert store.complete(claim_of(), payload_of(claim_of()), TTL)
        assert client.info("errorstats")["errorstat_READONLY"]["count"] == 1
        assert isinstance(store.claim(claim_of(OTHER)), Found)
        assert client.info("errorstats")["errorstat_READONLY"]["count"] == 1


def test_without_sentinels_a_known_master_goes_on_and_an_unknown_one_is_found_when_they_are_back(
    sentinel_set: SentinelSet, connect: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 0.0)  # before each use the sentinels are asked
    known, unknown = connect(), connect()
    known.claim(claim_of())
    master = sentinel_set.master()
    for sentinel in sentinel_set.sentinels:
        sentinel.stop()
    with pytest.raises(StoreError) as caught:
        unknown.claim(claim_of(OTHER))
    assert caught.value.outage
    assert known.complete(claim_of(), payload_of(claim_of()), TTL)
    with master.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert isinstance(known.claim(claim_of(OTHER)), Found)
    for sentinel in sentinel_set.sentinels:
        sentinel.launch()
        sentinel.await_ready()
    assert isinstance(until(lambda: unless_away(lambda: unknown.claim(claim_of(OTHER))), "a claim"), Found)


def test_many_who_come_at_once_ask_the_sentinels_over_one_connection(
    sentinel_set: SentinelSet, connect: Stores
) -> None:
    store = connect()
    with sentinel_set.sentinels[0].client() as client:
        before = {each["id"] for each in client.client_list(_type="normal")}
        assert at_once([lambda: store.peek(KEY)] * 60) == [None] * 60
        ours = [each for each in client.client_list(_type="normal") if each["id"] not in before]
    assert len(ours) == 1
