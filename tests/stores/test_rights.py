"""The fewest rights with which a user of Redis gets everything, and what is missing without each of them.

The table is the source of what the documentation and ``flask idempotency doctor`` say. It is measured here: a right
that nothing needs fails the test as well as one that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest
import redis

from flask_idempotent.core.record import State
from flask_idempotent.core.store import Claimed, Found, Store, StoreError
from flask_idempotent.stores import wakeups
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.writeback import Copy, Restored

from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, LEASE, ME, TTL, claim_of, payload_of, record_of

pytestmark = pytest.mark.redis

MINE = claim_of()
CHANNELS: Final = "&idempotency:*"
WRITES: Final = {"claim", "put back", "complete", "tell", "fail", "write back"}
SCRIPTS: Final = WRITES | {"replay", "extend", "forget", "wait", "listen", "step"}
SECONDS: Final = 2.0  # after which what has not happened does not happen
WITHOUT: Final = {
    "+evalsha": SCRIPTS,
    "+eval": SCRIPTS,  # sent once, to a server that does not know the script yet
    "+time": SCRIPTS,
    "+get": SCRIPTS | {"get"},
    "+set": WRITES | {"set"},
    "+setrange": {"extend", "step"},
    "+pttl": {"extend", "step"},
    "+pexpire": {"extend", "step"},
    "+append": {"step"},
    "+del": {"forget", "delete"},
    "+ping": {"ping"},
    "+publish": {"tell"},  # those who wait look once a second
    "+subscribe": {"listen"},  # those who wait look 40 times a second
    "+unsubscribe": {"listen"},
    CHANNELS: {"listen", "tell"},
}


@pytest.fixture(autouse=True)
def _undone_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subscriptions that nobody needs are not collected until they are many."""
    monkeypatch.setattr(wakeups, "LEFTOVERS", 1)


def claims(store: Store, admin: redis.Redis) -> None:
    assert isinstance(store.claim(MINE), Claimed)


def replays(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.DONE))
    assert isinstance(store.claim(MINE), Found)


def extends(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.PENDING, ME), px=5000)
    assert store.renew([MINE]) == [True]
    assert admin.pttl(KEY) > 5000


def puts_back(store: Store, admin: redis.Redis) -> None:
    assert store.renew([MINE]) == [True]
    assert admin.exists(KEY)


def completes(store: Store, admin: redis.Redis) -> None:
    assert store.complete(MINE, payload_of(MINE), TTL)


def fails(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.PENDING, ME))
    assert store.fail(MINE)


def forgets(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.PENDING, ME))
    assert store.forget(MINE)


def writes_back(store: RedisStore, admin: redis.Redis) -> None:
    assert store.restore([Copy(KEY, record_of(State.DONE), TTL, LEASE)]) == [Restored.WRITTEN]


def takes_steps(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.PENDING, ME))
    assert store.begin_step(MINE, b"n" * 16, b"n" * 16 + b"intent") == b""
    assert store.end_step(MINE, b"n" * 16 + b"result")


def waits(store: Store, admin: redis.Redis) -> None:
    admin.set(KEY, record_of(State.DONE))
    assert isinstance(store.wait(KEY, 1000), Found)


def listens(store: Store, admin: redis.Redis) -> None:
    """Whoever waits listens, also after another one has waited for another key."""
    for key in (KEY, "idempotency:{next}", "idempotency:{last}"):
        with waiting(store, key, admin):
            until(lambda key=key: admin.pubsub_numsub(key) == [(key.encode(), 1)], "a listener", within=SECONDS)


@contextmanager
def waiting(store: Store, key: str, admin: redis.Redis) -> Iterator[None]:
    """Someone waits for a key, until the block ends."""
    admin.set(key, record_of(State.PENDING))
    with ThreadPoolExecutor() as threads:
        waiter = threads.submit(store.wait, key, 10_000)
        try:
            yield
        finally:
            admin.set(key, record_of(State.DONE))
            admin.publish(key, "")
        assert isinstance(waiter.result(), Found)


def tells(store: Store, admin: redis.Redis) -> None:
    with admin.pubsub() as listener:
        listener.subscribe(KEY)
        listener.get_message(timeout=5)
        store.complete(MINE, payload_of(MINE), TTL)
        assert listener.get_message(timeout=SECONDS) is not None


OPERATIONS: Final[dict[str, Callable[[RedisStore, redis.Redis], object]]] = {
    "claim": claims,
    "replay": replays,
    "extend": extends,
    "put back": puts_back,
    "complete": completes,
    "fail": fails,
    "forget": forgets,
    "write back": writes_back,
    "step": takes_steps,
    "wait": waits,
    "listen": listens,
    "tell": tells,
    "get": lambda store, _: store.get(KEY),
    "set": lambda store, _: store.set(KEY, b"value", TTL),
    "delete": lambda store, _: store.delete(KEY),
    "ping": lambda store, _: store.ping(),
}


Limited = Callable[[RedisProcess, Iterable[str]], RedisStore]


@pytest.fixture
def grant() -> Iterator[Callable[[RedisProcess, Iterable[str]], dict[str, str]]]:
    """Gives a user rights to ``idempotency:*`` and nothing else; answers the credentials."""
    servers: list[RedisProcess] = []

    def grant(server: RedisProcess, rights: Iterable[str]) -> dict[str, str]:
        servers.append(server)
        with server.client() as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", "~idempotency:*", *rights)
        return {"username": "worker", "password": "secret"}

    yield grant
    for server in servers:
        with server.client() as admin:
            admin.acl_deluser("worker")


@pytest.fixture
def limited(grant: Callable[..., dict[str, str]], connect: Connect) -> Limited:
    """Builds stores with few rights. The user goes after the stores: Redis hangs up on a user who is deleted."""
    return lambda server, rights: connect(server.port, **grant(server, rights))


def missing(store: RedisStore, server: RedisProcess) -> set[str]:
    """What a store cannot do."""
    with server.client() as admin:
        return {each for each in OPERATIONS if not works(each, store, admin)}


def works(operation: str, store: RedisStore, admin: redis.Redis) -> bool:
    """Whether a store can do something on an empty server."""
    admin.flushall()
    admin.script_flush()
    try:
        OPERATIONS[operation](store, admin)
    except (StoreError, AssertionError):
        return False
    return True


def test_with_all_of_them_nothing_is_missing_on_any_version(any_server: RedisProcess, limited: Limited) -> None:
    assert missing(limited(any_server, ["resetchannels", *WITHOUT]), any_server) == set()


@pytest.mark.parametrize("right", WITHOUT)
def test_without_one_of_them_this_is_missing(redis_server: RedisProcess, limited: Limited, right: str) -> None:
    store = limited(redis_server, WITHOUT.keys() - {right})
    assert missing(store, redis_server) == WITHOUT[right]


def test_other_keys_are_out_of_reach_and_that_is_no_outage(redis_server: RedisProcess, limited: Limited) -> None:
    store = limited(redis_server, WITHOUT)
    for operation in (lambda: store.set("other", b"", TTL), lambda: store.claim(claim_of(key="other"))):
        with pytest.raises(StoreError) as caught:
            operation()
        assert not caught.value.outage
