"""The scripts as the server sees them: what each costs, and what becomes of it when something goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import redis
from redis.crc import key_slot

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.steps import journal_key
from flask_idempotent.core.store import Claim, Claimed, Found, StoreError
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.scripts import SCRIPTS
from flask_idempotent.stores.writeback import Copy, Restored

from ..servers.link import Link
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import KEY, ME, OTHER, TTL, claim_of, payload_of, record_of
from .test_redis import commands

pytestmark = pytest.mark.redis

MINE = claim_of()
NAME = b"n" * 16
Call = Callable[[RedisStore], object]

# What is done to a running request of our own, and what the server then has to do for it.
EVENTS: dict[str, tuple[Call, dict[str, int]]] = {
    "claim": (lambda store: store.claim(MINE), {}),
    "replay": (lambda store: store.claim(claim_of(OTHER)), {}),
    "renew": (lambda store: store.renew([MINE]), {"setrange": 1, "pttl": 1}),
    "complete": (lambda store: store.complete(MINE, payload_of(MINE), TTL), {"set": 1, "publish": 1}),
    "fail": (lambda store: store.fail(MINE), {"set": 1, "publish": 1}),
    "forget": (lambda store: store.forget(MINE), {"del": 1, "publish": 1}),
    "peek": (lambda store: store.peek(KEY), {}),
    "begin step": (
        lambda store: store.begin_step(MINE, NAME, NAME + b"I"),
        {"setrange": 1, "pttl": 2, "get": 2, "append": 1, "pexpire": 1},
    ),
    "end step": (lambda store: store.end_step(MINE, NAME + b"R"), {"pttl": 1, "append": 1, "pexpire": 1}),
}


@pytest.fixture
def store(connect: Connect, redis_server: RedisProcess, server: redis.Redis) -> RedisStore:
    """With a running request of our own."""
    store = connect(redis_server.port)
    store.claim(MINE)
    return store


@pytest.mark.parametrize("event", EVENTS)
def test_everything_is_one_script_and_one_round_trip(store: RedisStore, server: redis.Redis, event: str) -> None:
    call, inside = EVENTS[event]
    assert commands(server, lambda: call(store)) == {"evalsha": 1, "time": 1, "get": 1, **inside}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_touches_one_slot(script: object) -> None:
    keys = [KEY, journal_key(KEY)]
    packed = script.call(KEY)  # type: ignore[attr-defined]
    assert KEY.encode() in packed
    assert len({key_slot(key.encode()) for key in keys}) == 1


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("lasting"), persistent=True).start()
    yield server
    server.stop()


@pytest.mark.parametrize("event", EVENTS)
def test_a_server_that_was_restarted_learns_each_script_anew(
    lasting: RedisProcess, connect: Connect, event: str
) -> None:
    store, (call, _) = connect(lasting.port), EVENTS[event]
    lasting.flush()
    store.claim(MINE)
    expected = call(store)
    lasting.flush()
    store.claim(MINE)
    lasting.stop()
    lasting.start()
    again = call(store)
    assert type(again) is type(expected)
    if not isinstance(expected, Found):
        assert again == expected
    with lasting.client() as client:
        known = commands(client, lambda: call(store))
    assert "eval" not in known, "it is sent whole only once"


@pytest.mark.parametrize("restart", [False, True], ids=["SCRIPT FLUSH", "a restart"])
def test_a_pipeline_of_renewals_teaches_the_server_its_script(
    lasting: RedisProcess, connect: Connect, restart: bool
) -> None:
    lasting.flush()
    store = connect(lasting.port)
    claims = [claim_of(bytes([n]) * 16, f"idempotency:{{{n}}}") for n in range(40)]
    for claim in claims[:30]:
        store.claim(claim)
    if restart:
        lasting.stop()
        lasting.start()
    with lasting.client() as client:
        client.script_flush()
        assert store.renew(claims) == [True] * 40, "those that are absent are put back"
        assert store.restore([Copy(KEY, record_of(State.DONE, ME), TTL)]) == [Restored.WRITTEN]
        assert client.dbsize() == 41
        assert commands(client, lambda: store.renew(claims))["evalsha"] == 40


@pytest.fixture
def link(redis_server: RedisProcess) -> Iterator[Link]:
    link = Link(redis_server.port)
    yield link
    link.close()


ONCE = {
    "claim": (State.PENDING, Claimed(1)),
    "renew": (State.PENDING, [True]),
    "complete": (State.DONE, True),
    "fail": (State.FAILED, True),
    "forget": (None, True),
}


@pytest.mark.parametrize("event", ONCE)
def test_what_was_applied_though_its_reply_was_lost_succeeds_when_it_is_repeated(
    link: Link, redis_server: RedisProcess, server: redis.Redis, connect: Connect, event: str
) -> None:
    direct, store = connect(redis_server.port), connect(link.port)
    if event != "claim":
        direct.claim(MINE)
    store.peek("idempotency:{warm}")
    link.lose_replies_to(b"EVALSHA")
    asked = link.asked(b"EVALSHA")
    with pytest.raises(StoreError) as caught:
        EVENTS[event][0](store)
    assert caught.value.outage
    assert link.asked(b"EVALSHA") == asked + 2, "over the kept connection, and over a new one"
    state, answer = ONCE[event]
    raw = direct.get(KEY)
    assert (raw and read_head(raw).state) == state
    link.open()
    assert EVENTS[event][0](store) == answer
    after = direct.get(KEY)
    assert (after and read_head(after).state) == state
    if event in ("complete", "fail", "claim"):
        assert after == raw


@pytest.mark.parametrize("event", ["renew", "complete", "fail"])
def test_what_the_server_lost_is_put_back(store: RedisStore, server: redis.Redis, event: str) -> None:
    server.flushall()
    assert EVENTS[event][0](store) in (True, [True])
    raw = server.get(KEY)
    assert read_head(raw).owner == ME
    assert TTL - 5000 < server.pttl(KEY) <= TTL


@pytest.mark.parametrize("event", ["renew", "complete", "fail", "forget"])
def test_a_lost_record_that_another_has_taken_is_the_others(store: RedisStore, server: redis.Redis, event: str) -> None:
    server.flushall()
    store.claim(claim_of(OTHER))
    raw = server.get(KEY)
    assert EVENTS[event][0](store) in (False, [False])
    assert server.get(KEY) == raw


def taken(store: RedisStore, claim: Claim) -> bool:
    return isinstance(store.claim(claim), Claimed)


def test_a_takeover_tells_the_attempt_in_the_same_round_trip(store: RedisStore, server: redis.Redis) -> None:
    store.set(KEY, record_of(State.FAILED, OTHER, attempt=7), TTL)
    assert commands(server, partial(taken, store, MINE)) == {"evalsha": 1, "time": 1, "get": 1, "set": 1}
    assert read_head(server.get(KEY)).attempt == 8
