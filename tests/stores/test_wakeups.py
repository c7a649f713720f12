"""How waiting requests hear from Redis: one connection, no polling, and eyes of their own where they cannot hear."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from flask_idempotent.core.store import Found, Gone
from flask_idempotent.stores import wakeups
from flask_idempotent.stores.redis import RedisStore

from ..servers.link import Link
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, OTHER, TTL, alive, claim_of, elapsed, eventually, payload_of
from .test_redis import commands
from .test_waiting import LONG, waiting

pytestmark = pytest.mark.redis
ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(connect: Connect, redis_server: RedisProcess) -> RedisStore:
    return connect(redis_server.port)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by himself while he hears: only a message wakes him."""
    monkeypatch.setattr(wakeups, "SAFETY_SECONDS", 60.0)


def listeners(server: redis.Redis) -> int:
    ((_, number),) = server.pubsub_numsub(KEY)
    return int(number)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("event", ["complete", "fail", "forget"])
def test_a_message_wakes_all_who_wait(store: RedisStore, server: redis.Redis, event: str) -> None:
    mine = claim_of()
    store.claim(mine)
    with ThreadPoolExecutor(40) as pool:
        futures = waiting(pool, store, 40)
        eventually(lambda: listeners(server))
        ended = store.complete(mine, payload_of(mine), TTL) if event == "complete" else getattr(store, event)(mine)
        assert ended
        answers = [future.result(LONG / 2000) for future in futures]
    assert [isinstance(answer, Gone if event == "forget" else Found) for answer in answers] == [True] * 40


@pytest.mark.usefixtures("deaf")
def test_those_who_wait_share_one_connection_and_ask_once(store: RedisStore, server: redis.Redis) -> None:
    store.claim(claim_of())
    with ThreadPoolExecutor(20) as pool:

        def wait_and_wake() -> None:
            futures = waiting(pool, store, 20)
            eventually(lambda: listeners(server))
            time.sleep(0.3)  # in which those who poll would ask a dozen times
            store.forget(claim_of())
            assert [future.result(LONG / 2000) for future in futures] == [Gone()] * 20

        counts = commands(server, wait_and_wake)
        assert counts["subscribe"] == 1
        assert counts["evalsha"] <= 20 * 2 + 1
    subscribers = [each for each in server.client_list() if int(each["sub"])]
    assert len(subscribers) <= 1


def test_a_change_between_the_look_and_the_wait_is_not_missed(store: RedisStore) -> None:
    began, rounds = time.monotonic(), 60
    for number in range(rounds):
        mine = claim_of(bytes([number]) * 16)
        store.claim(mine)
        with ThreadPoolExecutor(4) as pool:
            futures = waiting(pool, store, 4)
            store.forget(mine)
            assert [future.result(LONG / 2000) for future in futures] == [Gone()] * 4
    assert time.monotonic() - began < rounds * wakeups.SAFETY_SECONDS / 5  # few were saved by looking again


def test_the_thread_and_its_connection_go_when_nobody_has_waited_for_a_while(
    store: RedisStore, server: redis.Redis
) -> None:
    store.claim(claim_of())
    store.wait(KEY, 10)
    assert len(alive("wakeups")) == 1
    eventually(lambda: not alive("wakeups"))
    assert listeners(server) == 0
    assert not [each for each in server.client_list() if int(each["sub"])]
    store.wait(KEY, 10)
    assert len(alive("wakeups")) == 1


def test_nobody_who_does_not_wait_starts_a_thread(store: RedisStore) -> None:
    store.claim(claim_of())
    store.claim(claim_of(OTHER))
    store.complete(claim_of(), payload_of(claim_of()), TTL)
    assert alive("wakeups") == []


def test_where_nothing_may_be_heard_those_who_wait_look_for_themselves(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis().start()
    with server.client() as client:
        client.acl_setuser("deaf", enabled=True, nopass=True, keys=["*"], commands=["+@all"], reset_channels=True)
    store = connect(server.port, username="deaf", password="any")
    store.claim(claim_of())
    with ThreadPoolExecutor(10) as pool:
        futures = waiting(pool, store, 10)
        store.complete(claim_of(), payload_of(claim_of()), TTL)
        took = elapsed(lambda: [future.result(LONG / 2000) for future in futures])
    assert all(isinstance(future.result(), Found) for future in futures)
    assert took < 2


def test_a_broken_ear_does_not_break_the_wait(redis_server: RedisProcess, connect: Connect) -> None:
    link = Link(redis_server.port)
    try:
        store, direct = connect(link.port), connect(redis_server.port)
        direct.claim(claim_of())
        with redis_server.client() as server, ThreadPoolExecutor(5) as pool:
            futures = waiting(pool, store, 5)
            eventually(lambda: listeners(server))
            server.client_kill_filter(_type="pubsub")
            direct.complete(claim_of(), payload_of(claim_of()), TTL)
            assert [isinstance(future.result(LONG / 2000), Found) for future in futures] == [True] * 5
    finally:
        link.close()


def test_a_message_that_was_lost_is_made_up_for_soon(store: RedisStore, server: redis.Redis) -> None:
    store.claim(claim_of())
    server.config_resetstat()
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, store, 1)
        eventually(lambda: listeners(server) and "cmdstat_evalsha" in server.info("commandstats"))  # it has looked
        server.delete(KEY)  # nobody publishes that
        assert future.result(LONG / 2000) == Gone()


def test_those_who_wait_on_a_server_that_froze_are_not_left_to_the_slow_look(
    redis_server: RedisProcess, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not hang up, and so nobody would know that nothing is heard any more."""
    monkeypatch.setattr(wakeups, "PING_SECONDS", 0.1)
    monkeypatch.setattr(wakeups, "SAFETY_SECONDS", 60.0)
    link = Link(redis_server.port)
    try:
        store = connect(redis_server.port)
        store._wakeups = wakeups.Wakeups(lambda: redis.Redis(port=link.port, protocol=2))
        store.claim(claim_of())
        with ThreadPoolExecutor(3) as pool, redis_server.client() as server:
            futures = waiting(pool, store, 3)
            eventually(lambda: listeners(server))
            link.freeze()
            store.complete(claim_of(), payload_of(claim_of()), TTL)
            assert [isinstance(future.result(LONG / 2000), Found) for future in futures] == [True] * 3
    finally:
        link.close()


def test_those_who_wait_long_keep_hearing(
    store: RedisStore, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "PING_SECONDS", 0.02)
    store.claim(claim_of())
    with ThreadPoolExecutor(1) as pool:
        (future,) = waiting(pool, store, 1)
        eventually(lambda: listeners(server))
        server.config_resetstat()
        eventually(lambda: server.info("commandstats").get("cmdstat_ping", {"calls": 0})["calls"] > 5)
        assert listeners(server) == 1
        store.forget(claim_of())
        assert future.result(LONG / 2000) == Gone()


FORKED = """
import os, sys, threading, redis
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.redis import RedisStore
from tests.stores.making import KEY, claim_of, eventually
store = RedisStore(nodes_behind(redis.Redis(port=int(sys.argv[1])), 5.0))
store.claim(claim_of())
store.wait(KEY, 10)                       # the parent has a thread, and a connection of its own
child = os.fork()
if child == 0:
    threading.Timer(0.2, store.forget, [claim_of()]).start()
    os._exit(type(store.wait(KEY, 20_000)).__name__ != "Gone")
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), type(store.wait(KEY, 10)).__name__)
"""


@pytest.mark.usefixtures("server")
def test_a_forked_worker_hears_for_itself(redis_server: RedisProcess) -> None:
    command = [sys.executable, "-c", FORKED, str(redis_server.port)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["0", "Gone"], done.stderr


def test_one_who_left_before_the_subscription_stood_does_not_make_the_next_deaf(store: RedisStore) -> None:
    """The confirmation may come at any moment of a short wait, or just after it: the waits sweep over its time."""
    ears = wakeups.Wakeups(store.nodes.client)
    with ears.listening("idempotency:{open}", 2.0):
        for number in range(300):
            key = f"idempotency:{{{number}}}"
            with ears.listening(key, number % 100 * 5e-6):
                pass
            time.sleep(0.002)
            with ears.listening(key, 1.0) as ear:
                assert ear.hears


def test_a_subscription_that_was_undone_before_it_stood_does_not_count(
    store: RedisStore, redis_server: RedisProcess, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who waits for the key next believes to hear, and does not."""
    monkeypatch.setattr(wakeups, "LEFTOVERS", 1)
    monkeypatch.setattr(wakeups, "IDLE_SECONDS", 10.0)
    ears = store._wakeups
    with ears.listening("warm", 1) as ear:
        assert ear.hears
    redis_server.freeze()
    try:
        for name in (KEY, "another"):  # the second makes the thread look at what the first has left
            with ears.listening(name, 0.1):
                time.sleep(0.1)
    finally:
        redis_server.thaw()
    time.sleep(0.3)
    with ears.listening(KEY, 1) as ear:
        assert ear.hears
        assert listeners(server) == 1
        server.publish(KEY, "")
        assert ear.changed.wait(1)
    ears.close()
