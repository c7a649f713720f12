"""A Redis Cluster in motion: slots that move, masters that die, freeze or come back empty."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

import pytest
from redis.crc import key_slot

from flask_idempotent.config import Settings
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, OnOutage, StoreError
from flask_idempotent.stores.addresses import POOL_SIZE
from flask_idempotent.stores.redis import RedisStore

from ..servers.cluster import SLOTS, Cluster
from ..servers.process import until
from ..servers.standalone import RedisProcess
from .making import DIFFERENT, KEY, OTHER, TTL, alive, at_once, claim_of, elapsed, eventually, payload_of
from .test_waiting import LONG
from .topologies import cluster_settings, store_of

pytestmark = pytest.mark.redis

BUDGET = 0.5  # seconds for an answer
WITHIN = 20.0  # seconds for a failover on a busy machine; 2 on a quiet one
Stores = Callable[..., RedisStore]
Answer = TypeVar("Answer")


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    alone = ("--cluster-require-full-coverage", "no")  # a master goes on though another one is gone
    cluster = Cluster(tmp_path_factory.mktemp("moving-cluster"), *alone, replicas=1).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """A healthy Cluster with a replica for each master, mended after the test: who is the master may have changed."""
    for node in _cluster.nodes:
        with node.client() as client:
            if client.info("replication")["role"] == "master":
                client.flushall()
    yield _cluster
    for node in _cluster.nodes:
        if node.running:
            node.thaw()
        else:
            node.start()
    _cluster.await_healthy()


@pytest.fixture
def connect(cluster: Cluster) -> Iterator[Stores]:
    """Makes stores, each as a worker of its own has it."""
    made: list[RedisStore] = []

    def connect(of: Cluster = cluster, **settings: Any) -> RedisStore:
        terms = Settings(local_tier=None, on_outage=OnOutage.REJECT, store_timeout=BUDGET, **settings)
        made.append(store_of(cluster_settings(of), terms))
        return made[-1]

    yield connect
    for store in made:
        store.close()
    eventually(lambda: not alive("wakeups"))


_numbers = count()


def fresh_claim() -> Claim:
    number = next(_numbers)
    return claim_of(number.to_bytes(16), f"idempotency:{{fresh {number}}}")


def claim_at(cluster: Cluster, node: RedisProcess) -> Claim:
    """A new claim whose slot is a node's."""
    while cluster.master_of(slot_of((claim := fresh_claim()).key)) is not node:
        pass
    return claim


def slot_of(key: str) -> int:
    return int(key_slot(key.encode()))


def elsewhere(cluster: Cluster, slot: int) -> RedisProcess:
    """A master that does not have a slot."""
    return next(
        node for node in map(cluster.master_of, (0, SLOTS // 2, SLOTS - 1)) if node is not cluster.master_of(slot)
    )


def unless_away(call: Callable[[], Answer]) -> Answer | None:
    """What a call gives; None in an outage."""
    try:
        return call()
    except StoreError as error:
        if not error.outage:
            raise
        time.sleep(0.02)
        return None


def errors(node: RedisProcess, code: str) -> int:
    with node.client() as client:
        return int(client.info("errorstats").get(f"errorstat_{code}", {"count": 0})["count"])


def test_a_slot_that_moved_is_followed_once(cluster: Cluster, connect: Stores) -> None:
    store, mine = connect(), claim_of()
    store.claim(mine)
    slot = slot_of(KEY)
    old = cluster.master_of(slot)
    cluster.move(slot, elsewhere(cluster, slot))
    before = errors(old, "MOVED")
    assert store.renew([mine]) == [True]
    assert store.complete(mine, payload_of(mine), TTL)
    assert isinstance(store.claim(claim_of(OTHER)), Found)
    assert errors(old, "MOVED") == before + 1
    assert isinstance(connect().claim(claim_of(OTHER)), Found)


def test_while_a_slot_moves_keys_are_found_where_they_are(cluster: Cluster, connect: Stores) -> None:
    store = connect()
    stays, moves, comes = (claim_of(bytes([n]) * 16, f"idempotency:{{slot}}{n}") for n in range(3))
    assert len({slot_of(claim.key) for claim in (stays, moves, comes)}) == 1
    slot = slot_of(stays.key)
    old, new = cluster.master_of(slot), elsewhere(cluster, slot)
    store.claim(stays)
    store.claim(moves)
    cluster.begin_move(slot, new)
    with old.client() as client:
        client.execute_command("MIGRATE", "127.0.0.1", new.port, moves.key, 0, 5000)
    asks = errors(old, "ASK")
    assert store.claim(comes) == Claimed(1)
    assert errors(old, "ASK") > asks
    claims = [stays, moves, comes]
    assert store.renew(claims) == [True] * 3
    for claim in claims:
        assert isinstance(store.claim(claim_of(OTHER, claim.key)), Found)
    assert store.complete(stays, payload_of(stays), TTL)
    assert store.complete(moves, payload_of(moves), TTL)
    with old.client() as client:
        assert client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot) == 1
    cluster.finish_move(slot, new)
    assert store.complete(comes, payload_of(comes), TTL)
    assert store.renew(claims) == [True] * 3
    for claim in claims:
        found = store.claim(claim_of(OTHER, claim.key, fingerprint=DIFFERENT))
        assert isinstance(found, Found)
        assert read_head(found.record).state is State.DONE


def test_renewals_reach_every_master_while_a_slot_moves(cluster: Cluster, connect: Stores) -> None:
    store, claims = connect(), [fresh_claim() for _ in range(60)]
    for claim in claims:
        store.claim(claim)
    slot = slot_of(claims[0].key)
    new = elsewhere(cluster, slot)
    cluster.begin_move(slot, new)
    assert store.renew(claims) == [True] * 60
    for other in claims[1:10]:
        if slot_of(other.key) != slot:
            cluster.move(slot_of(other.key), elsewhere(cluster, slot_of(other.key)))
    assert store.renew(claims) == [True] * 60
    cluster.finish_move(slot, new)
    assert store.renew(claims) == [True] * 60


def test_scripts_that_a_new_master_does_not_know_are_sent_to_it(cluster: Cluster, connect: Stores) -> None:
    store, mine = connect(), claim_of()
    store.claim(mine)
    slot = slot_of(KEY)
    new = elsewhere(cluster, slot)
    cluster.begin_move(slot, new)
    with new.client() as client:
        client.script_flush()
    beside = claim_of(OTHER, f"{KEY}beside")
    assert slot_of(beside.key) == slot
    assert store.claim(beside) == Claimed(1)
    cluster.finish_move(slot, new)
    with new.client() as client:
        client.script_flush()
    assert store.renew([mine, beside]) == [True, True]
    assert store.complete(mine, payload_of(mine), TTL)


def test_steps_are_taken_while_a_slot_moves(cluster: Cluster, connect: Stores) -> None:
    """The journal is a second key of the slot, which may not be there yet."""
    store, mine, name = connect(), claim_of(), b"n" * 16
    store.claim(mine)
    slot = slot_of(KEY)
    cluster.begin_move(slot, elsewhere(cluster, slot))
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(store.begin_step, mine, name, name + b"intent")
        cluster.finish_move(slot, elsewhere(cluster, slot))
        assert step.result(10) == b""
    assert store.end_step(mine, name + b"result")


def test_when_a_master_is_killed_its_slots_go_on_within_seconds_and_the_others_all_the_time(
    cluster: Cluster, connect: Stores
) -> None:
    store = connect()
    victim = cluster.master_of(0)
    others = [node for node in map(cluster.master_of, (SLOTS // 2, SLOTS - 1)) if node is not victim]
    mine, safe = claim_at(cluster, victim), [claim_at(cluster, node) for node in others]
    for claim in (mine, *safe):
        store.claim(claim)
    with victim.client() as client:
        until(lambda: client.wait(1, 1000) == 1, "the replica to follow")
    ends = [read_head(store.get(claim.key) or b"").deadline for claim in safe]
    victim.stop()
    with pytest.raises(StoreError) as caught:
        store.renew([mine, *safe])
    assert caught.value.outage
    assert all(read_head(store.get(claim.key) or b"").deadline >= end for claim, end in zip(safe, ends, strict=True))

    def others_go_on() -> None:
        for node in others:
            claim = claim_at(cluster, node)
            assert store.claim(claim) == Claimed(1)
            assert store.complete(claim, payload_of(claim), TTL)

    def taken_over() -> bool | None:
        others_go_on()
        return unless_away(lambda: store.complete(mine, payload_of(mine), TTL))

    until(taken_over, "a replica to take over", within=WITHIN)
    assert isinstance(store.claim(claim_of(OTHER, mine.key)), Found)


def test_a_frozen_master_costs_only_those_who_need_it(cluster: Cluster, connect: Stores) -> None:
    store = connect()
    victim = cluster.master_of(0)
    other = cluster.master_of(SLOTS - 1)
    at_once([lambda: store.claim(fresh_claim())] * 8)
    there, mine = claim_at(cluster, victim), [claim_at(cluster, other) for _ in range(20)]
    store.claim(there)
    victim.freeze()
    try:
        assert unless_away(lambda: store.claim(claim_of(OTHER, there.key))) is None
        assert elapsed(lambda: [store.claim(claim) for claim in mine]) < BUDGET * 2
        with pytest.raises(StoreError):
            store.renew([there, *mine])
        assert elapsed(lambda: [store.complete(claim, payload_of(claim), TTL) for claim in mine]) < BUDGET * 2
        cluster.await_takeover(0, victim)
        again = until(lambda: unless_away(lambda: store.claim(claim_of(OTHER, there.key))), "an answer", within=WITHIN)
        assert isinstance(again, Found | Claimed)  # without MIN_REPLICAS a failover may lose the claim
    finally:
        victim.thaw()
    late = claim_at(cluster, cluster.master_of(0))
    assert store.claim(late) == Claimed(1)
    with cluster.master_of(0).client() as client:
        assert client.exists(late.key)


def test_those_who_wait_are_woken_whichever_master_has_their_key(cluster: Cluster, connect: Stores) -> None:
    waiter, runner = connect(), connect()
    for slot in (0, SLOTS // 2, SLOTS - 1):
        mine = claim_at(cluster, cluster.master_of(slot))
        runner.claim(mine)
        with ThreadPoolExecutor(1) as pool:
            waits = pool.submit(waiter.wait, mine.key, LONG)
            until(lambda key=mine.key: _listeners(cluster, key), "somebody who listens")
            began = time.monotonic()
            runner.complete(mine, payload_of(mine), TTL)
            assert isinstance(waits.result(LONG / 1000), Found)
            assert time.monotonic() - began < 0.9, "not by looking again after a second"


def _listeners(cluster: Cluster, key: str) -> int:
    total = 0
    for node in cluster.nodes:
        with node.client() as client:
            total += client.pubsub_numsub(key)[0][1]
    return total


def test_a_claim_counts_only_with_the_replicas_of_its_own_master(cluster: Cluster, connect: Stores) -> None:
    store = connect(min_replicas=1)
    with cluster.replicas[0].client() as client:
        about = client.info("replication")
    replica = cluster.replicas[0] if about["role"] == "slave" else cluster.masters[0]
    with replica.client() as client:
        port = client.info("replication")["master_port"]
    master = next(node for node in cluster.nodes if node.port == port)
    other = next(node for node in map(cluster.master_of, (0, SLOTS // 2, SLOTS - 1)) if node is not master)
    replica.freeze()
    try:
        with pytest.raises(StoreError, match="0 of 1 replicas"):
            store.claim(claim_at(cluster, master))
        assert store.claim(claim_at(cluster, other)) == Claimed(1)
    finally:
        replica.thaw()
    assert store.claim(claim_at(cluster, master)) == Claimed(1)


def test_many_who_come_at_once_do_not_flood_a_server_with_connections(cluster: Cluster, connect: Stores) -> None:
    store = connect()
    assert at_once([lambda: store.claim(fresh_claim())] * 150) == [Claimed(1)] * 150
    for node in cluster.nodes:
        with node.client() as client:
            assert len(client.client_list(_type="normal")) <= POOL_SIZE + 2


def test_a_master_that_comes_back_empty_is_told_what_still_runs(
    new_cluster: Callable[..., Cluster], connect: Stores
) -> None:
    """Without a replica, and faster than the others count it as failed."""
    lone = new_cluster().start()
    store = connect(lone)
    running, ended = (claim_at(lone, lone.masters[0]) for _ in range(2))
    for claim in (running, ended):
        store.claim(claim)
    lone.masters[0].stop()
    lone.masters[0].start()
    lone.await_healthy()
    assert store.peek(running.key) is None
    assert store.renew([running]) == [True]
    assert store.complete(ended, payload_of(ended), TTL)
    for claim in (running, ended):
        assert isinstance(store.claim(claim_of(OTHER, claim.key)), Found)
