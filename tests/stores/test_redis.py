"""The Redis store: what is really on the server, what it costs, and that it heals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from flask_idempotent.core.key import scoped, storage_key
from flask_idempotent.core.machine import Replay, judge
from flask_idempotent.core.record import HEAD_SIZE, State, read_head
from flask_idempotent.core.store import Claimed, Found, Gone, Store, StoreError
from flask_idempotent.stores import addresses
from flask_idempotent.stores.addresses import POOL_SIZE, nodes_behind
from flask_idempotent.stores.redis import RedisStore

from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, LEASE, OTHER, PAST, TTL, at_once, claim_of, eventually, payload_of, record_of
from .test_contract import EVENTS, do

pytestmark = pytest.mark.redis


@pytest.fixture
def store(connect: Connect, redis_server: RedisProcess) -> Store:
    return connect(redis_server.port)


def test_redis_itself_keeps_the_time_of_every_record(store: Store, server: redis.Redis) -> None:
    mine = claim_of(lease_ms=50_000, ttl_ms=100_000)
    store.claim(mine)
    assert 95_000 < server.pttl(KEY) <= 100_000
    server.pexpire(KEY, 40_000)
    store.renew([mine])
    assert 45_000 < server.pttl(KEY) <= 50_000
    store.fail(mine)
    assert 45_000 < server.pttl(KEY) <= 50_000
    store.claim(claim_of(OTHER, ttl_ms=100_000))
    assert 95_000 < server.pttl(KEY) <= 100_000
    store.complete(claim_of(OTHER), payload_of(claim_of(OTHER)), 300_000)
    assert 295_000 < server.pttl(KEY) <= 300_000
    store.set(KEY, b"value", 70_000)
    assert 65_000 < server.pttl(KEY) <= 70_000


@pytest.mark.parametrize("event", ["renew", "complete", "fail"])
def test_a_record_that_is_put_back_has_a_time_too(store: Store, server: redis.Redis, event: str) -> None:
    assert do(store, event, claim_of()) is True
    assert TTL - 5000 < server.pttl(KEY) <= TTL


@pytest.mark.parametrize("event", EVENTS)
def test_no_operation_leaves_a_key_without_an_end(store: Store, server: redis.Redis, event: str) -> None:
    for raw in (None, record_of(State.PENDING, deadline=PAST), record_of(State.PENDING, claim_of().owner)):
        server.delete(KEY)
        if raw:
            store.set(KEY, raw, TTL)
        do(store, event, claim_of())
        assert server.pttl(KEY) != -1


def test_deadlines_are_by_the_servers_clock(store: Store, server: redis.Redis) -> None:
    store.claim(claim_of())
    seconds, microseconds = server.time()
    now = seconds * 1000 + microseconds // 1000
    raw = server.get(KEY)
    assert 0 <= now + LEASE - read_head(raw).deadline < 1000


def test_nothing_on_the_server_tells_the_key_the_caller_or_the_path(store: Store, server: redis.Redis) -> None:
    digest = scoped("shop", "POST", "/orders/secret-path", b"alice@example.com", "client-key-42")
    key = storage_key("idempotency:", digest)
    mine = claim_of(key=key)
    for event in ("claim", "renew", "complete"):
        do(store, event, mine)
        assert server.keys() == [key.encode()]
        seen = key.encode() + server.get(key)
        assert not [word for word in (b"client", b"alice", b"secret", b"orders") if word in seen]
    assert key.startswith("idempotency:{")
    assert server.memory_usage(key) < 1000


@pytest.mark.parametrize("event", [*EVENTS, "get"])
def test_what_is_no_string_is_an_error_and_stays(store: Store, server: redis.Redis, event: str) -> None:
    server.rpush(KEY, "somebody else's list")
    with pytest.raises(StoreError) as caught:
        store.get(KEY) if event == "get" else do(store, event, claim_of())
    assert caught.value.outage is False
    assert server.lrange(KEY, 0, -1) == [b"somebody else's list"]


@pytest.mark.parametrize("event", EVENTS)
def test_scripts_that_the_server_forgot_are_sent_again(store: Store, server: redis.Redis, event: str) -> None:
    for _ in range(2):
        server.script_flush()
        server.delete(KEY)
        assert do(store, event, claim_of()) in (True, Claimed(1))
    server.script_flush()
    assert isinstance(store.wait(KEY, 0), Gone) == (event == "forget")


def commands(server: redis.Redis, work: Callable[[], Any]) -> dict[str, int]:
    """How often each command ran on the server while something was done, those inside of scripts included."""
    server.config_resetstat()
    work()
    stats = server.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()}
    return {name: calls for name, calls in counts.items() if not name.startswith(("config", "info"))}


def test_a_first_run_costs_two_round_trips_and_a_replay_one(store: Store, server: redis.Redis) -> None:
    store.get(KEY)  # opens the connection
    mine, inside = claim_of(), {"time": 1, "get": 1}
    assert commands(server, lambda: store.claim(mine)) == {"evalsha": 1, "set": 1, **inside}
    complete = partial(store.complete, mine, payload_of(mine), TTL)
    assert commands(server, complete) == {"evalsha": 1, "set": 1, "publish": 1, **inside}
    assert commands(server, lambda: store.claim(claim_of(OTHER))) == {"evalsha": 1, **inside}


def test_many_renewals_go_in_one_pipeline(store: Store, server: redis.Redis) -> None:
    claims = [claim_of(bytes([i]) * 16, f"idempotency:{{{i}}}") for i in range(50)]
    for claim in claims:
        store.claim(claim)
    server.config_resetstat()
    reads = server.info("stats")["total_reads_processed"]
    assert store.renew(claims) == [True] * 50
    assert server.info("stats")["total_reads_processed"] - reads <= 4  # INFO, SCRIPT EXISTS, the pipeline and spare
    assert server.info("commandstats")["cmdstat_evalsha"]["calls"] == 50


def test_a_client_of_our_own_opens_no_connection_and_speaks_resp2(server: redis.Redis, connect: Connect) -> None:
    port = server.connection_pool.connection_kwargs["port"]
    before = {each["id"] for each in server.client_list()}
    opened = server.info("stats")["total_connections_received"]
    store = connect(port)
    assert server.info("stats")["total_connections_received"] == opened
    store.get(KEY)
    assert [each["resp"] for each in server.client_list() if each["id"] not in before] == ["2"]


def test_the_lent_clients_address_counts_but_not_its_manners(redis_server: RedisProcess) -> None:
    patient = Retry(ConstantBackoff(5), 10)
    lent = redis.Redis(
        port=redis_server.port, db=3, client_name="lent", protocol=3, decode_responses=True, encoding="utf-16",
        socket_timeout=60, socket_connect_timeout=60, retry=patient, max_connections=1, health_check_interval=1,
    )  # fmt: skip
    ours = RedisStore(nodes_behind(lent, 0.25))
    with redis_server.client() as server:
        ours.set("key", b"\xff\x00", TTL)
        assert ours.get("key") == b"\xff\x00"
        (seen,) = [each for each in server.client_list() if each["name"] == "lent"]
        assert (seen["db"], seen["resp"]) == ("3", "2")
        assert lent.connection_pool.connection_kwargs["socket_timeout"] == 60
        redis_server.freeze()
        began = time.monotonic()
        try:
            with pytest.raises(StoreError):
                ours.get("key")
        finally:
            redis_server.thaw()
        assert time.monotonic() - began < 1
        ours.close()
    lent.close()


def test_a_restarted_server_is_reached_again_by_every_connection(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis().start()
    store = connect(server.port)
    keys = [f"idempotency:{{{i}}}" for i in range(20)]
    at_once([partial(store.get, key) for key in keys])
    server.stop()
    with pytest.raises(StoreError):
        store.get(KEY)
    server.start()
    assert at_once([partial(store.claim, claim_of(key=key)) for key in keys]) == [Claimed(1)] * 20


def test_connections_that_the_server_closed_do_not_cost_a_request(store: Store, server: redis.Redis) -> None:
    store.claim(claim_of())
    for event in ("claim", "renew", "complete"):
        server.client_kill_filter(_type="normal", skipme=True)
        assert do(store, event, claim_of()) in (True, Claimed(1))


def test_more_threads_than_connections_wait_and_all_succeed(store: Store, server: redis.Redis) -> None:
    claims = [claim_of(key=f"idempotency:{{{i}}}") for i in range(3 * POOL_SIZE)]
    server.client_pause(200, all=True)
    assert at_once([partial(store.claim, claim) for claim in claims]) == [Claimed(1)] * len(claims)
    assert int(server.info("clients")["connected_clients"]) <= POOL_SIZE + 2


def test_a_pool_that_stays_exhausted_is_an_error_and_no_outage(
    connect: Connect, redis_server: RedisProcess, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "PATIENCE", 0.1)
    store = connect(redis_server.port, 5.0, max_connections=1)
    with ThreadPoolExecutor(1) as other:
        server.client_pause(1000, all=True)
        held = other.submit(store.get, KEY)
        eventually(lambda: store.nodes.pool._made == 1 and not store.nodes.pool._idle)
        with pytest.raises(StoreError) as caught:
            store.claim(claim_of())
        assert caught.value.outage is False
        assert "in use" in str(caught.value)
        assert held.result(10) is None
    assert store.claim(claim_of()) == Claimed(1)


def test_renewals_do_not_queue_behind_the_requests_that_they_serve(
    connect: Connect, redis_server: RedisProcess, server: redis.Redis
) -> None:
    store = connect(redis_server.port, 5.0, max_connections=1)
    store.claim(claim_of())
    with ThreadPoolExecutor(2) as others:
        server.client_pause(300, all=True)
        held = others.submit(store.get, KEY)
        eventually(lambda: not store.nodes.pool._idle)
        renewed = others.submit(store.renew, [claim_of()])
        eventually(lambda: store.nodes.pool._made == 2)  # it has a connection of its own
        assert renewed.result(10) == [True]
        assert held.result(10) is not None


def test_a_reply_that_came_too_late_is_never_given_to_the_next(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis().start()
    store = connect(server.port, 0.25)
    values = {f"idempotency:{{{i}}}": b"%d" % i for i in range(40)}
    for key, value in values.items():
        store.set(key, value, TTL)
    server.freeze()
    with ThreadPoolExecutor(8) as pool:
        late = [pool.submit(store.get, key) for key in list(values)[:8]]
        assert all(isinstance(future.exception(10), StoreError) for future in late)
    server.thaw()
    assert dict(zip(values, at_once([partial(store.get, key) for key in values]), strict=True)) == values


def test_a_claim_that_was_applied_after_its_time_out_is_found_by_its_token(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis().start()
    store = connect(server.port, 0.25)
    store.claim(claim_of(OTHER, "idempotency:{warm}"))
    server.freeze()
    with pytest.raises(StoreError) as caught:
        store.claim(claim_of())
    assert caught.value.outage
    server.thaw()
    eventually(lambda: store.get(KEY) is not None)
    assert store.claim(claim_of()) == Claimed(1)
    assert isinstance(store.claim(claim_of(OTHER)), Found)


def test_a_large_outcome_goes_there_and_back(store: Store) -> None:
    body = bytes(range(256)) * 8192  # 2 MiB
    store.claim(claim_of())
    assert store.complete(claim_of(), payload_of(claim_of(), body), TTL)
    found = store.claim(claim_of(OTHER))
    assert isinstance(found, Found)
    verdict = judge(found, claim_of(OTHER))
    assert isinstance(verdict, Replay)
    assert verdict.response.body == body
    assert len(found.record) > HEAD_SIZE


def test_threads_do_not_get_each_others_answers(store: Store) -> None:
    stop = threading.Event()

    def work(number: int) -> int:
        mine, rounds = claim_of(bytes([number]) * 16, f"idempotency:{{{number}}}"), 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end and not stop.is_set():
            assert store.claim(mine) == Claimed(1)
            assert store.renew([mine]) == [True]
            raw = store.get(mine.key)
            assert raw is not None
            assert read_head(raw).owner == mine.owner
            rounds += 1
        return rounds

    assert all(rounds > 0 for rounds in at_once([partial(work, number) for number in range(40)]))
