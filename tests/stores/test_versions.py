"""The same store on every server that we can have: Redis from 6.2 on, and Valkey."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import redis

from flask_idempotent.core.machine import Mismatch, Replay, judge
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claimed, Found, Gone, StoreError, StoreFull
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.servers import look
from flask_idempotent.stores.writeback import Copy, Restored

from ..servers.binaries import NAMES
from ..servers.ports import free_port
from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import DIFFERENT, KEY, LEASE, ME, OTHER, PAST, THIRD, TTL, claim_of, payload_of, record_of
from .test_waiting import LONG, waiting

pytestmark = pytest.mark.redis

MINE = claim_of()
NAME = b"n" * 16


@pytest.fixture
def store(any_server: RedisProcess, connect: Connect) -> RedisStore:
    return connect(any_server.port)


@pytest.fixture
def server(any_server: RedisProcess) -> Iterator[redis.Redis]:
    with any_server.client() as client:
        yield client


def test_a_request_and_its_duplicates(store: RedisStore, server: redis.Redis) -> None:
    assert store.claim(MINE) == Claimed(1)
    assert store.claim(MINE) == Claimed(1)
    assert store.renew([MINE]) == [True]
    with ThreadPoolExecutor(10) as pool:
        futures = waiting(pool, store, 10)
        until(lambda: server.pubsub_numsub(KEY)[0][1], "somebody who listens")
        assert store.complete(MINE, payload_of(MINE), TTL)
        assert all(isinstance(future.result(LONG / 2000), Found) for future in futures)
    again, foreign = claim_of(OTHER), claim_of(OTHER, fingerprint=DIFFERENT)
    for claim, verdict in ((again, Replay), (foreign, Mismatch)):
        found = store.claim(claim)
        assert isinstance(found, Found)
        assert isinstance(judge(found, claim), verdict)
    assert TTL - 5000 < server.pttl(KEY) <= TTL


def test_attempts_that_fail_die_or_come_to_nothing(store: RedisStore, server: redis.Redis) -> None:
    store.claim(MINE)
    assert store.fail(MINE)
    assert read_head(server.get(KEY)).state is State.FAILED
    assert store.claim(claim_of(OTHER)) == Claimed(2)
    assert store.forget(claim_of(OTHER, attempt=2))
    assert store.peek(KEY) is None
    assert isinstance(store.wait(KEY, 1000), Gone)
    store.set(KEY, record_of(State.PENDING, OTHER, deadline=PAST), TTL)
    assert store.claim(claim_of(THIRD)) == Claimed(2)
    assert store.complete(claim_of(OTHER), payload_of(claim_of(OTHER)), TTL) is False
    assert store.renew([claim_of(OTHER)]) == [False]


def test_steps_and_write_back(store: RedisStore) -> None:
    store.claim(MINE)
    assert store.begin_step(MINE, NAME, NAME + b"I") == b""
    assert store.end_step(MINE, NAME + b"R")
    assert store.begin_step(MINE, NAME, NAME + b"I") == NAME + b"I" + NAME + b"R"
    assert store.restore([Copy(KEY, record_of(State.DONE, ME), TTL, LEASE)]) == [Restored.WRITTEN]


def test_a_server_that_lost_records_and_scripts(store: RedisStore, server: redis.Redis) -> None:
    claims = [claim_of(bytes([n]) * 16, f"idempotency:{{{n}}}") for n in range(10)]
    store.claim(claims[0])
    server.flushall()
    server.script_flush()
    assert store.renew(claims) == [True] * 10
    assert server.dbsize() == 10


@pytest.mark.parametrize("version", NAMES)
def test_a_restart(version: str, new_redis: Callable[..., RedisProcess], connect: Connect) -> None:
    server = new_redis(version=version, persistent=True).start()
    store = connect(server.port)
    store.claim(MINE)
    server.stop()
    with pytest.raises(StoreError) as caught:
        store.complete(MINE, payload_of(MINE), TTL)
    assert caught.value.outage
    server.start()
    assert store.complete(MINE, payload_of(MINE), TTL)
    assert isinstance(store.claim(claim_of(OTHER)), Found)


@contextmanager
def setting(server: redis.Redis, name: str, value: object) -> Iterator[None]:
    before = server.config_get(name)[name]
    server.config_set(name, value)
    try:
        yield
    finally:
        server.config_set(name, before)


WRITES: dict[str, Callable[[RedisStore], object]] = {
    "claim": lambda store: store.claim(claim_of(OTHER, "idempotency:{new}")),
    "renew": lambda store: store.renew([MINE]),
    "complete": lambda store: store.complete(MINE, payload_of(MINE), TTL),
    "fail": lambda store: store.fail(MINE),
    "set": lambda store: store.set("idempotency:{value}", b"value", TTL),
}


@pytest.mark.parametrize("event", WRITES)
def test_a_server_without_room_says_so(store: RedisStore, server: redis.Redis, event: str) -> None:
    store.claim(MINE)
    with setting(server, "maxmemory", 1), pytest.raises(StoreFull):
        WRITES[event](store)
    assert store.complete(MINE, payload_of(MINE), TTL)


def test_an_outcome_without_room_stretches_its_claim(store: RedisStore, server: redis.Redis) -> None:
    store.claim(claim_of(ttl_ms=5000))
    with setting(server, "maxmemory", 1), pytest.raises(StoreFull):
        store.complete(MINE, payload_of(MINE), TTL)
    assert server.pttl(KEY) > 5000


@pytest.mark.parametrize("event", WRITES)
def test_a_replica_is_an_outage(store: RedisStore, server: redis.Redis, event: str) -> None:
    store.claim(MINE)
    server.execute_command("REPLICAOF", "127.0.0.1", free_port())
    try:
        with pytest.raises(StoreError, match="READONLY") as caught:
            WRITES[event](store)
    finally:
        server.execute_command("REPLICAOF", "NO", "ONE")
    assert caught.value.outage


@pytest.mark.parametrize("event", WRITES)
def test_a_master_that_lacks_its_replicas_is_an_outage(store: RedisStore, server: redis.Redis, event: str) -> None:
    store.claim(MINE)
    with setting(server, "min-replicas-to-write", 1), pytest.raises(StoreError, match="NOREPLICAS") as caught:
        WRITES[event](store)
    assert caught.value.outage


@pytest.mark.parametrize("missing", ["set", "evalsha"])
def test_a_user_without_the_right_is_no_outage(
    any_server: RedisProcess, server: redis.Redis, connect: Connect, missing: str
) -> None:
    server.execute_command("ACL", "SETUSER", "poor", "reset", "on", ">secret", "~*", "&*", "+@all", f"-{missing}")
    store = connect(any_server.port, username="poor", password="secret")
    with pytest.raises(StoreError) as caught:
        store.claim(MINE)
    assert not caught.value.outage
    store.close()
    server.acl_deluser("poor")


def test_a_claim_that_no_replica_has_does_not_count(any_server: RedisProcess, store: RedisStore) -> None:
    durable = RedisStore(store.nodes, min_replicas=1, wait_ms=20)
    with pytest.raises(StoreError, match="0 of 1"):
        durable.claim(MINE)
    assert isinstance(durable.claim(claim_of(OTHER)), Found)


def test_the_server_tells_what_it_is(store: RedisStore) -> None:
    (server,) = look(store.nodes)
    assert server.product.startswith(("Redis ", "Valkey "))
    assert (server.policy, server.persistence, server.role, server.replicas) == ("noeviction", "none", "master", 0)
