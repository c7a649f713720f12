"""What counts as an outage of Redis, what does not, and how long each may take to be told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial

import pytest
import redis

from flask_idempotent.core.store import Claimed, Found, Store, StoreError, StoreFull
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.scripts import SCRIPTS

from ..servers.link import Link
from ..servers.ports import free_port
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, OTHER, TTL, at_once, claim_of, eventually, payload_of
from .test_contract import do

pytestmark = pytest.mark.redis

BUDGET = 0.25
WITHIN = 1.0  # four times the budget, for a busy machine
NewRedis = Callable[..., RedisProcess]
WRITES = ("claim", "renew", "complete", "fail", "set")


def call(store: Store, event: str) -> object:
    """Any operation of a store by its name, on the one key."""
    if event in ("claim", "renew", "complete", "fail", "forget"):
        return do(store, event, claim_of())
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get(KEY),
        "set": lambda: store.set(KEY, b"value", TTL),
        "delete": lambda: store.delete(KEY),
        "wait": lambda: store.wait(KEY, 0),
    }
    return calls[event]()


ALL = ("claim", "renew", "complete", "fail", "forget", "wait", "get", "set", "delete")


@contextmanager
def fails(*, outage: bool, within: float = WITHIN) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        yield
    assert caught.value.outage is outage, caught.value
    assert time.monotonic() - began < within


@pytest.mark.parametrize("event", ALL)
def test_a_server_that_is_down_is_an_outage_at_once(connect: Connect, event: str) -> None:
    with fails(outage=True):
        call(connect(free_port(), BUDGET), event)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_a_frozen_server_is_an_outage_within_the_budget_whatever_is_asked(
    connect: Connect, redis_server: RedisProcess, warm: bool
) -> None:
    store = connect(redis_server.port, BUDGET)
    if warm:
        at_once([partial(store.get, KEY)] * len(ALL))
    redis_server.freeze()
    try:
        with ThreadPoolExecutor(len(ALL)) as pool:
            began = time.monotonic()
            calls = [pool.submit(call, store, event) for event in ALL]
            errors = [asked.exception(WITHIN - (time.monotonic() - began)) for asked in calls]
    finally:
        redis_server.thaw()
    assert [isinstance(error, StoreError) and error.outage for error in errors] == [True] * len(ALL), errors
    assert store.report().outage is None


def test_a_frozen_server_holds_no_thread_much_longer_than_the_budget(
    connect: Connect, redis_server: RedisProcess
) -> None:
    store = connect(redis_server.port, BUDGET)
    redis_server.freeze()
    began = time.monotonic()
    try:
        answers = at_once([partial(pytest.raises, StoreError, store.claim, claim_of()) for _ in range(30)])
    finally:
        redis_server.thaw()
    assert all(caught.value.outage for caught in answers)
    assert time.monotonic() - began < 2 * WITHIN


def test_an_address_that_swallows_packets_is_an_outage_within_the_budget(
    connect: Connect, redis_server: RedisProcess
) -> None:
    link = Link(redis_server.port)
    try:
        store = connect(link.port, BUDGET)
        link.freeze()
        with fails(outage=True):
            store.claim(claim_of())
        link.open()
        assert store.claim(claim_of()) == Claimed(1)
        link.lose_replies_to(b"EVALSHA")
        asked = link.asked(b"EVALSHA")
        with fails(outage=True):
            store.complete(claim_of(), payload_of(claim_of()), TTL)
        assert link.asked(b"EVALSHA") == asked + 2, "once more over a new connection: the kept one may be old"
    finally:
        link.close()


def test_a_server_that_dies_while_it_is_waited_on_is_an_outage(connect: Connect, redis_server: RedisProcess) -> None:
    link = Link(redis_server.port)
    try:
        store = connect(link.port, BUDGET)
        store.claim(claim_of(OTHER))
        failures: list[StoreError] = []

        def wait() -> None:
            with pytest.raises(StoreError) as caught:
                store.wait(KEY, 20_000)
            failures.append(caught.value)

        waiter = threading.Thread(target=wait)
        waiter.start()
        eventually(lambda: link.asked(KEY.encode()) > 1)
        link.cut()
        waiter.join(5)
        assert [error.outage for error in failures] == [True]
    finally:
        link.close()


@pytest.mark.parametrize("heard", [False, True], ids=["first", "later"])
def test_a_wait_on_a_frozen_server_does_not_use_up_its_time(
    connect: Connect, redis_server: RedisProcess, heard: bool
) -> None:
    store = connect(redis_server.port, BUDGET)
    store.claim(claim_of(OTHER))
    if heard:
        store.wait(KEY, 1)
    redis_server.freeze()
    try:
        with fails(outage=True, within=2.0):
            store.wait(KEY, 3000)
    finally:
        redis_server.thaw()


@pytest.mark.parametrize("event", WRITES)
def test_a_read_only_replica_is_an_outage(new_redis: NewRedis, connect: Connect, event: str) -> None:
    replica = new_redis("--replicaof", "127.0.0.1 1").start()
    with fails(outage=True):
        call(connect(replica.port), event)


def test_a_replica_without_its_master_is_an_outage(new_redis: NewRedis, connect: Connect) -> None:
    replica = new_redis().start()
    store = connect(replica.port)
    with replica.client() as client:
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof("127.0.0.1", 1)
    with fails(outage=True):
        store.claim(claim_of())


@pytest.mark.parametrize("event", WRITES)
def test_too_few_replicas_are_an_outage(new_redis: NewRedis, connect: Connect, event: str) -> None:
    with fails(outage=True):
        call(connect(new_redis("--min-replicas-to-write", "1").start().port), event)


def test_an_error_of_many_renewals_tells_no_token(new_redis: NewRedis, connect: Connect) -> None:
    store = connect(new_redis("--min-replicas-to-write", "1").start().port)
    with pytest.raises(StoreError, match="NOREPLICAS") as caught:
        store.renew([claim_of(b"secret token 123"), claim_of(OTHER, "idempotency:{other}")])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("event", WRITES)
def test_a_server_that_cannot_save_is_an_outage(new_redis: NewRedis, connect: Connect, event: str) -> None:
    server = new_redis().start()
    (server.directory / "dump.rdb").mkdir()
    with server.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
    with fails(outage=True):
        call(connect(server.port), event)


@pytest.mark.parametrize("event", WRITES)
def test_a_server_that_is_busy_with_a_script_is_an_outage(new_redis: NewRedis, connect: Connect, event: str) -> None:
    server = new_redis("--lua-time-limit", "10").start()
    store = connect(server.port)
    with server.client() as client, server.client() as busy:
        store.get(KEY)
        hog = threading.Thread(target=_hog, args=(busy,))
        hog.start()
        try:
            eventually(lambda: _is_busy(client))
            with fails(outage=True):
                call(store, event)
        finally:
            client.execute_command("SCRIPT KILL")
            hog.join(5)


def _hog(client: redis.Redis) -> None:
    with suppress(redis.ResponseError):  # it is killed
        client.eval("while true do end", 0)


def _is_busy(client: redis.Redis) -> bool:
    try:
        client.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error)
    return False


def test_a_cluster_that_is_down_is_an_outage(new_redis: NewRedis, connect: Connect) -> None:
    server = new_redis("--cluster-enabled", "yes", "--cluster-port", str(free_port())).start()
    with fails(outage=True):
        connect(server.port).claim(claim_of())


def test_a_server_that_is_loading_is_an_outage(new_redis: NewRedis, connect: Connect) -> None:
    server = new_redis("--key-load-delay", "15000", "--loading-process-events-interval-bytes", "1024").start()
    with server.client() as client:
        client.config_set("rdbcompression", "no")
        for number in range(40):
            client.set(f"key {number}", b"x" * 1100)
        client.save()
    store = connect(server.port, 5.0)
    server.stop()
    starting = threading.Thread(target=server.start)
    starting.start()
    seen: list[StoreError] = []

    def loading() -> bool:
        try:
            store.claim(claim_of())
        except StoreError as error:
            seen.append(error)
            return "loading" in str(error).lower()
        return True

    try:
        eventually(loading)
    finally:
        starting.join(15)
    assert "loading" in str(seen[-1]).lower()
    assert all(error.outage for error in seen)
    assert eventually(lambda: store.claim(claim_of())) == Claimed(1)


PASSWORD = "correct horse"


@pytest.fixture
def guarded(new_redis: NewRedis) -> RedisProcess:
    """A Redis with a password, and a user who may only read."""
    server = new_redis().start()
    with server.client() as client:
        client.acl_setuser("reader", enabled=True, passwords=["+reading"], keys=["*"], categories=["+@read"])
        client.config_set("requirepass", PASSWORD)
    return server


@pytest.mark.parametrize("event", ALL)
@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"password": "wrong battery"},
        {"username": "nobody", "password": "wrong battery"},
        {"username": "reader", "password": "wrong battery"},
    ],
    ids=["none", "password", "unknown", "user"],
)
def test_a_wrong_password_is_no_outage_and_never_told(
    guarded: RedisProcess, connect: Connect, credentials: dict[str, str], event: str
) -> None:
    store = connect(guarded.port, **credentials)
    with pytest.raises(StoreError) as caught:
        call(store, event)
    report = store.report()
    assert caught.value.outage is False
    assert report.refused
    told = f"{caught.value} {report.outage}"
    assert not [secret for secret in ("battery", "horse") if secret in told]


def test_the_right_password_is_let_in(guarded: RedisProcess, connect: Connect) -> None:
    store = connect(guarded.port, password=PASSWORD)
    assert store.claim(claim_of()) == Claimed(1)
    assert store.report().redis_available


def test_a_user_without_the_right_to_write_is_no_outage(guarded: RedisProcess, connect: Connect) -> None:
    store = connect(guarded.port, username="reader", password="reading")
    assert store.get(KEY) is None
    with fails(outage=False):
        store.claim(claim_of())


def test_an_outcome_is_kept_where_the_user_may_not_publish(guarded: RedisProcess, connect: Connect) -> None:
    with redis.Redis(port=guarded.port, password=PASSWORD, protocol=2) as client:
        client.acl_setuser(
            "quiet", enabled=True, passwords=["+quiet"], keys=["*"], commands=["+@all"], reset_channels=True
        )
    store = connect(guarded.port, username="quiet", password="quiet")
    for event in ("claim", "complete", "complete"):
        assert do(store, event, claim_of()) in (True, Claimed(1))
    assert isinstance(store.wait(KEY, 10_000), Found)


@pytest.fixture
def full(new_redis: NewRedis) -> Iterator[RedisProcess]:
    """A Redis that knows our scripts and has no memory left."""
    server = new_redis("--maxmemory-policy", "noeviction").start()
    with server.client() as client:
        for script in SCRIPTS:
            client.script_load(script.text)
        store = RedisStore(nodes_behind(client, 5.0))
        store.claim(claim_of())
        client.config_set("maxmemory", 1)
        yield server
        store.close()


@pytest.mark.parametrize("event", WRITES)
def test_a_redis_without_memory_is_full(full: RedisProcess, connect: Connect, event: str) -> None:
    store = connect(full.port)
    with pytest.raises(StoreFull):
        do(store, event, claim_of(OTHER, "idempotency:{new}")) if event != "set" else store.set(KEY, b"", TTL)
    assert isinstance(store.claim(claim_of(OTHER)), Found)


def test_a_redis_without_memory_is_no_outage(full: RedisProcess, connect: Connect) -> None:
    """The protocol's own words: a full store is no outage, another tier must not paper over it."""
    with fails(outage=False):
        connect(full.port).claim(claim_of(OTHER, "idempotency:{new}"))


def test_a_full_redis_still_lets_go(full: RedisProcess, connect: Connect) -> None:
    assert connect(full.port).forget(claim_of()) is True


def test_a_report_tells_of_an_outage_and_never_raises(connect: Connect, redis_server: RedisProcess) -> None:
    link = Link(redis_server.port)
    try:
        store = connect(link.port, BUDGET)
        assert store.report().redis_available
        for trouble in (link.cut, link.freeze):
            trouble()
            report = store.report()
            assert (report.redis_available, report.refused, report.cache_type) == (False, False, "redis")
            assert report.outage
        link.open()
        assert store.report().outage is None
    finally:
        link.close()
