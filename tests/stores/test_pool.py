"""The connections of a store: never more than it may have, none lost, none with somebody else's reply on it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
import redis

from flask_idempotent.core.store import StoreError
from flask_idempotent.stores import pool as pools
from flask_idempotent.stores.nodes import OneServer
from flask_idempotent.stores.pool import Exhausted, Pool
from flask_idempotent.stores.redis import RedisStore

from ..servers.link import Link
from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, TTL, at_once, claim_of

pytestmark = pytest.mark.redis
ROOT = Path(__file__).parents[2]


def pool_of(store: RedisStore) -> Pool:
    assert isinstance(store.nodes, OneServer)
    return store.nodes.pool


@pytest.fixture
def link(redis_server: RedisProcess) -> Iterator[Link]:
    link = Link(redis_server.port)
    yield link
    link.close()


def test_after_every_kind_of_trouble_no_connection_is_lost_and_no_reply_is_another_ones(
    link: Link, redis_server: RedisProcess, connect: Connect
) -> None:
    store, limit = connect(link.port, 0.1, max_connections=4), 4
    values = {f"idempotency:{{{number}}}": b"%d" % number for number in range(8)}
    with redis_server.client() as server:
        for key, value in values.items():
            server.set(key, value)
        before = {each["id"] for each in server.client_list()}
        stop, seen, wrong = threading.Event(), Counter[str](), []

        def work(number: int) -> None:
            key = f"idempotency:{{{number}}}"
            while not stop.is_set():
                try:
                    if store.get(key) != values[key]:
                        wrong.append(key)
                    seen["well"] += 1
                except StoreError as error:
                    seen["outage" if error.outage else "full"] += 1

        random = Random(4)
        with ThreadPoolExecutor(8) as threads:
            working = [threads.submit(work, number) for number in range(8)]
            for trouble in (link.cut, link.freeze, lambda: link.lose_replies_to(b"GET")) * 4:
                trouble()
                time.sleep(random.uniform(0.01, 0.15))  # however long it lasts
                link.open()
                well = seen["well"]
                until(lambda well=well: seen["well"] > well + 20, "answers after the trouble")
            stop.set()
            for each in working:
                each.result(10)
        pool = pool_of(store)
        assert wrong == []
        assert seen["outage"] > 10
        assert pool._made == len(pool._idle) <= limit
        until(lambda: len({each["id"] for each in server.client_list()} - before) <= limit, "the rest to be closed")


def test_a_connection_beyond_the_limit_goes_when_it_is_no_longer_urgent(
    redis_server: RedisProcess, connect: Connect
) -> None:
    store = connect(redis_server.port, 5.0, max_connections=1)
    claims = [claim_of(bytes([number]) * 16, f"idempotency:{{{number}}}") for number in range(5)]
    with redis_server.client() as server:
        server.client_pause(100, all=True)
        at_once([lambda claim=claim: store.renew([claim]) for claim in claims])
    assert pool_of(store)._made <= 1  # those that end at the same moment may all make room


def test_a_connection_that_was_silent_for_long_is_not_trusted(
    redis_server: RedisProcess, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect(redis_server.port)
    for _ in range(3):
        store.get(KEY)
    assert store.nodes.connects.number == 1
    monkeypatch.setattr(pools, "FRESH_SECONDS", 0.0)
    store.get(KEY)
    assert store.nodes.connects.number == 2
    assert pool_of(store)._made == 1


def test_a_restart_of_the_server_does_not_let_the_pool_grow(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis().start()
    store = connect(server.port, 5.0, max_connections=5)
    for _ in range(3):
        at_once([lambda: store.get(KEY)] * 30)
        server.stop()
        server.start()
    at_once([lambda: store.get(KEY)] * 30)
    assert pool_of(store)._made <= 5
    with server.client() as client:
        assert len(client.client_list()) <= 6


def test_who_gave_up_waiting_takes_no_connection_with_him(redis_server: RedisProcess, connect: Connect) -> None:
    store = connect(redis_server.port, 5.0, max_connections=1)
    store.get(KEY)
    pool = pool_of(store)
    pool._patience = 0.05
    with redis_server.client() as server, ThreadPoolExecutor(1) as other:
        server.client_pause(300, all=True)
        held = other.submit(store.get, KEY)
        until(lambda: not pool._idle, "the connection to be in use")
        for _ in range(3):
            with pytest.raises(Exhausted):
                pool.exchange(b"*1\r\n$4\r\nPING\r\n", 1)
        assert held.result(10) is None
    assert (pool._made, len(pool._idle), pool._waiting) == (1, 1, 0)


def test_a_connection_that_is_in_use_when_the_store_is_closed_is_hung_up_when_it_comes_back(
    redis_server: RedisProcess, connect: Connect
) -> None:
    store = connect(redis_server.port, 5.0)
    pool = pool_of(store)
    with redis_server.client() as server, ThreadPoolExecutor(2) as others:
        store.get(KEY)
        server.client_pause(300, all=True)
        held = [others.submit(store.get, KEY) for _ in range(2)]  # one has the kept connection, one makes another
        until(lambda: pool._made == 2 and not pool._idle, "the connections to be in use")
        store.close()
        assert [each.result(10) for each in held] == [None, None]
        until(lambda: (pool._made, pool._idle) == (0, []), "the connections to be closed")
        assert store.get(KEY) is None
        assert (pool._made, len(pool._idle)) == (1, 1)


@pytest.mark.usefixtures("server")
def test_greenlets_that_are_killed_leave_no_connection_and_no_reply_behind(redis_server: RedisProcess) -> None:
    command = [sys.executable, "-m", "tests.stores.greenlets", str(redis_server.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"wrong": [], "made": 0, "connections": True}


def test_a_value_is_read_whole_however_it_comes(redis_server: RedisProcess, connect: Connect) -> None:
    store = connect(redis_server.port)
    values = {f"idempotency:{{{size}}}": bytes(size) for size in (0, 1, 65535, 65536, 65537, 131072, 1_000_000)}
    for key, value in values.items():
        store.set(key, value, TTL)
    assert {key: store.get(key) for key in values} == values


@pytest.fixture
def server(redis_server: RedisProcess) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        yield client
