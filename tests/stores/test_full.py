"""A Redis without room: it takes nothing new, loses nothing old, and a finished request keeps its key."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from flask import Flask
from werkzeug.test import TestResponse

from flask_idempotent import Idempotency, idempotent
from flask_idempotent.core.machine import Busy, Mismatch, Replay, judge
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claimed, Found, StoreError, StoreFull
from flask_idempotent.stores.redis import RedisStore

from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import Connect
from .making import DIFFERENT, KEY, ME, OTHER, THIRD, TTL, claim_of, payload_of

pytestmark = pytest.mark.redis

SHORT = 5000  # milliseconds that a claim retains its record
MINE = claim_of(ttl_ms=SHORT)
NEW = claim_of(OTHER, "idempotency:{new}")


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("roomy"), "--maxmemory-policy", "noeviction").start()
    yield server
    server.stop()


@pytest.fixture
def server(roomy: RedisProcess) -> Iterator[redis.Redis]:
    """A client that can fill the server, and give it room again."""
    with roomy.client() as client:
        client.flushall()
        yield client
        room(client)


@pytest.fixture
def store(roomy: RedisProcess, connect: Connect, server: redis.Redis) -> RedisStore:
    return connect(roomy.port)


def fill(client: redis.Redis) -> None:
    client.config_set("maxmemory", 1)


def room(client: redis.Redis) -> None:
    client.config_set("maxmemory", 0)


def completed(store: RedisStore) -> bool:
    return store.complete(MINE, payload_of(MINE), TTL)


def test_an_outcome_without_room_leaves_the_key_with_its_request_for_the_outcomes_retention(
    store: RedisStore, server: redis.Redis
) -> None:
    store.claim(MINE)
    before = server.get(KEY)
    fill(server)
    with pytest.raises(StoreFull):
        completed(store)
    assert TTL - 5000 < server.pttl(KEY) <= TTL
    assert server.get(KEY) == before
    assert read_head(before).owner == ME
    found, foreign = store.claim(claim_of(OTHER)), store.claim(claim_of(OTHER, fingerprint=DIFFERENT))
    assert isinstance(found, Found)
    assert isinstance(foreign, Found)
    assert isinstance(judge(found, claim_of(OTHER)), Busy)
    assert isinstance(judge(foreign, claim_of(OTHER, fingerprint=DIFFERENT)), Mismatch)


def test_an_outcome_is_taken_as_soon_as_there_is_room(store: RedisStore, server: redis.Redis) -> None:
    store.claim(MINE)
    fill(server)
    for _ in range(2):
        with pytest.raises(StoreFull):
            completed(store)
    room(server)
    assert completed(store)
    found = store.claim(claim_of(OTHER))
    assert isinstance(found, Found)
    assert isinstance(judge(found, claim_of(OTHER)), Replay)


def test_a_key_whose_lease_ends_while_there_is_no_room_is_taken_over_by_nobody(
    store: RedisStore, server: redis.Redis
) -> None:
    brief = claim_of(lease_ms=100, ttl_ms=TTL)
    store.claim(brief)
    fill(server)
    with pytest.raises(StoreFull):
        store.renew([brief])
    until(lambda: _lapsed(store), "the end of the lease")
    with pytest.raises(StoreFull):
        store.claim(claim_of(OTHER))
    room(server)
    assert store.renew([brief]) == [True], "it is still this request's"
    assert isinstance(store.claim(claim_of(THIRD)), Found)


def _lapsed(store: RedisStore) -> bool:
    found = store.peek(KEY)
    assert found is not None
    return read_head(found.record).deadline < found.now_ms


def test_an_outcome_that_is_there_stays_and_replays(store: RedisStore, server: redis.Redis) -> None:
    store.claim(MINE)
    completed(store)
    fill(server)
    assert completed(store), "told again, there is nothing to write"
    found = store.claim(claim_of(OTHER))
    assert isinstance(found, Found)
    assert read_head(found.record).state is State.DONE


def test_a_record_that_the_server_lost_has_no_room_either(store: RedisStore, server: redis.Redis) -> None:
    fill(server)
    with pytest.raises(StoreFull):
        completed(store)
    assert server.exists(KEY) == 0


def test_another_ones_record_is_not_stretched(store: RedisStore, server: redis.Redis) -> None:
    store.claim(claim_of(OTHER, ttl_ms=60_000))
    fill(server)
    assert completed(store) is False
    assert server.pttl(KEY) <= 60_000


@pytest.mark.parametrize("event", ["fail", "begin step", "end step", "set"])
def test_whatever_needs_room_is_told_that_there_is_none(store: RedisStore, server: redis.Redis, event: str) -> None:
    store.claim(MINE)
    calls: dict[str, Callable[[], object]] = {
        "fail": lambda: store.fail(MINE),
        "begin step": lambda: store.begin_step(MINE, b"n" * 16, b"n" * 16),
        "end step": lambda: store.end_step(MINE, b"n" * 16),
        "set": lambda: store.set(KEY, b"value", TTL),
    }
    fill(server)
    with pytest.raises(StoreFull):
        calls[event]()
    assert store.forget(MINE), "letting go needs no room"


def test_full_is_no_outage(store: RedisStore, server: redis.Redis) -> None:
    fill(server)
    with pytest.raises(StoreError) as caught:
        store.claim(NEW)
    assert not caught.value.outage
    assert store.report().redis_available


def test_an_app_refuses_new_keys_and_a_view_that_has_run_gets_its_answer_out(
    roomy: RedisProcess, server: redis.Redis
) -> None:
    app = Flask("shop")
    app.config.update(
        IDEMPOTENCY_CACHE_REDIS_URL=roomy.url, IDEMPOTENCY_LOCAL_TIER=None, IDEMPOTENCY_ON_OUTAGE="execute",
        IDEMPOTENCY_STORE_TIMEOUT=3,
    )  # fmt: skip
    Idempotency(app)
    runs: list[int] = []

    @app.post("/")
    @idempotent
    def view() -> tuple[str, int]:
        runs.append(1)
        fill(server)
        return "done", 201

    def post(key: str) -> TestResponse:
        return app.test_client().post("/", headers={"Idempotency-Key": key})

    first, again, other = post("k"), post("k"), post("other")
    assert (first.status_code, first.text) == (201, "done")
    assert (again.status_code, again.json["code"]) == (409, "request-in-progress")
    assert (other.status_code, other.json["code"]) == (503, "store-unavailable")
    assert "Retry-After" in other.headers
    assert len(runs) == 1
    room(server)
    assert isinstance(app.extensions["idempotency"].state_of(app).store.claim(NEW), Claimed)
    app.extensions["idempotency"].close(app)
