"""Records that must be on replicas before they count: WAIT, for what this very connection has written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest
import redis
from flask import Flask
from werkzeug.test import TestResponse

from flask_idempotent import Idempotency, current_idempotency, idempotent
from flask_idempotent.core.machine import Replay, judge
from flask_idempotent.core.store import Claimed, Found, Gone, StoreError
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.redis import RedisStore

from ..servers.link import Link
from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import hang_up
from .making import KEY, OTHER, THIRD, TTL, claim_of, elapsed, payload_of
from .test_contract import do

pytestmark = pytest.mark.redis

WAIT_MS = 300
LONG_MS = 4000  # a wait that would be noticed
ENDINGS = ("complete", "fail")


@dataclass(frozen=True)
class Pair:
    """A master with one replica, and a way to the master that can lose replies."""

    master: RedisProcess
    replica: RedisProcess
    link: Link


@pytest.fixture(scope="module")
def _pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    master = RedisProcess(tmp_path_factory.mktemp("master")).start()
    replica = RedisProcess(tmp_path_factory.mktemp("replica"), replica_of=master).start()
    link = Link(master.port)
    yield Pair(master, replica, link)
    link.close()
    replica.stop()
    master.stop()


@pytest.fixture
def pair(_pair: Pair) -> Iterator[Pair]:
    """With a replica that is up to date; a test may freeze it."""
    with _pair.master.client() as client:
        client.flushall()
        until(lambda: client.wait(1, 1000) == 1, "the replica to follow")
    yield _pair
    _pair.replica.thaw()
    _pair.link.open()


@pytest.fixture
def store(pair: Pair) -> Iterator[Callable[..., RedisStore]]:
    """Makes stores that want one replica."""
    made: list[RedisStore] = []

    def make(port: int | None = None, wait_ms: int = WAIT_MS) -> RedisStore:
        nodes = nodes_behind(redis.Redis(port=port or pair.master.port), 10.0)
        made.append(RedisStore(nodes, min_replicas=1, wait_ms=wait_ms))
        return made[-1]

    yield make
    hang_up([each.nodes for each in made])


Stores = Callable[..., RedisStore]


def refused(store: RedisStore, event: str) -> None:
    with pytest.raises(StoreError, match="0 of 1 replicas") as caught:
        do(store, event, claim_of())
    assert caught.value.outage


def test_what_has_returned_is_on_the_replica(pair: Pair, store: Stores) -> None:
    one = store()
    with pair.master.client() as master, pair.replica.client() as replica:
        assert one.claim(claim_of()) == Claimed(1)
        assert replica.get(KEY) == master.get(KEY) is not None
        assert one.complete(claim_of(), payload_of(claim_of()), TTL)
        assert replica.get(KEY) == master.get(KEY)


def test_a_claim_that_the_replica_does_not_have_does_not_count(pair: Pair, store: Stores) -> None:
    one = store()
    pair.replica.freeze()
    refused(one, "claim")
    pair.replica.thaw()
    assert one.claim(claim_of()) == Claimed(1), "asked again with the same token it is the same claim"


@pytest.mark.parametrize("event", ENDINGS)
def test_an_end_that_the_replica_does_not_have_is_told(pair: Pair, store: Stores, event: str) -> None:
    one = store()
    one.claim(claim_of())
    pair.replica.freeze()
    refused(one, event)
    pair.replica.thaw()
    assert do(one, event, claim_of()) is True


def test_a_server_without_any_replica_does_not_count(redis_server: RedisProcess, store: Stores) -> None:
    refused(store(redis_server.port), "claim")


def test_other_connections_of_the_pool_do_not_stand_in_for_the_one_that_wrote(pair: Pair, store: Stores) -> None:
    """WAIT tells of what its own connection has written, which is nothing yet for a new one."""
    one = store()
    pair.replica.freeze()
    refused(one, "claim")
    one.nodes.close()
    refused(one, "claim")  # the same token again: nothing is written, and still it is not on the replica


@pytest.mark.parametrize("event", ["claim", "complete", "fail"])
def test_a_lost_reply_makes_no_replica_out_of_none(pair: Pair, store: Stores, event: str) -> None:
    one = store(pair.link.port)
    if event != "claim":
        one.claim(claim_of())
    one.peek(KEY)
    pair.replica.freeze()
    pair.link.lose_replies_to(b"WAIT")
    with pytest.raises(StoreError):
        do(one, event, claim_of())
    pair.link.open()
    refused(one, event)
    pair.replica.thaw()
    assert do(one, event, claim_of()) in (True, Claimed(1))


def test_what_is_found_is_told_at_once_though_the_replica_is_away(pair: Pair, store: Stores) -> None:
    mine, done = claim_of(), claim_of(OTHER, "idempotency:{done}")
    direct = store()
    for claim in (mine, done):
        direct.claim(claim)
    direct.complete(done, payload_of(done), TTL)
    patient = store(wait_ms=LONG_MS)
    patient.claim(claim_of(THIRD, "idempotency:{written on this connection}"))
    pair.replica.freeze()

    def look() -> None:
        running = patient.claim(claim_of(OTHER))
        finished = patient.claim(claim_of(THIRD, done.key))
        assert isinstance(running, Found)
        assert isinstance(finished, Found)
        assert isinstance(judge(finished, claim_of(THIRD, done.key)), Replay)
        assert isinstance(patient.wait("idempotency:{nobody}", 0), Gone)
        assert patient.complete(claim_of(OTHER), payload_of(claim_of(OTHER)), TTL) is False
        assert patient.renew([mine]) == [True]

    assert elapsed(look) < LONG_MS / 2000


def test_the_report_tells_of_missing_replicas(redis_server: RedisProcess, pair: Pair, store: Stores) -> None:
    assert store().report().redis_available
    report = store(redis_server.port).report()
    assert not report.redis_available
    assert report.outage == "only 0 of 1 replicas have the record"


def app_with(master: RedisProcess, on_outage: str) -> Flask:
    """An app on Redis alone that wants one replica, and whose views tell how often they ran."""
    app = Flask("shop")
    app.config.update(
        IDEMPOTENCY_CACHE_REDIS_URL=master.url, IDEMPOTENCY_MIN_REPLICAS=1, IDEMPOTENCY_LOCAL_TIER=None,
        IDEMPOTENCY_ON_OUTAGE=on_outage, IDEMPOTENCY_STORE_TIMEOUT=0.5,
    )  # fmt: skip
    Idempotency(app)
    runs = count(1)
    app.post("/")(idempotent(lambda: ({"run": next(runs), "attempt": current_idempotency.attempt}, 201)))
    app.post("/failing", endpoint="failing")(idempotent(lambda: ({"attempt": current_idempotency.attempt}, 500)))
    return app


def post(app: Flask, path: str = "/") -> TestResponse:
    return app.test_client().post(path, headers={"Idempotency-Key": "k"})


def answered(app: Flask, path: str = "/") -> TestResponse:
    """The answer when the app has noticed that the replica is back."""
    return until(lambda: [each for each in [post(app, path)] if each.status_code != 503], "an answer")[0]


def test_a_route_that_rejects_does_not_run_and_leaves_the_key_free(pair: Pair) -> None:
    app = app_with(pair.master, "reject")
    failed = post(app, "/failing")
    pair.replica.freeze()
    refused = [post(app), post(app, "/failing")]
    pair.replica.thaw()
    answer, again = answered(app), answered(app, "/failing")
    assert [(each.status_code, "Retry-After" in each.headers) for each in refused] == [(503, True)] * 2
    assert (answer.status_code, answer.json) == (201, {"run": 1, "attempt": 1})
    assert (failed.json, again.status_code) == ({"attempt": 1}, 500)
    assert again.json["attempt"] > 1, "a failure is not forgotten"
    app.extensions["idempotency"].close(app)


def test_a_route_that_executes_says_that_it_is_degraded(pair: Pair) -> None:
    app = app_with(pair.master, "execute")
    pair.replica.freeze()
    answers = [post(app) for _ in range(2)]
    pair.replica.thaw()
    assert [(each.status_code, each.headers.get("Idempotency-Degraded")) for each in answers] == [(201, "true")] * 2
    assert [each.json["run"] for each in answers] == [1, 2]
    app.extensions["idempotency"].close(app)


def test_a_view_that_ran_gets_its_answer_to_the_client_though_no_replica_has_it(pair: Pair) -> None:
    app = app_with(pair.master, "reject")
    app.post("/freezing", endpoint="freezing")(idempotent(lambda: (pair.replica.freeze(), ("done", 201))[1]))
    first = post(app, "/freezing")
    pair.replica.thaw()
    again = answered(app, "/freezing")
    assert (first.status_code, first.text) == (201, "done")
    assert (again.status_code, again.headers.get("Idempotent-Replayed")) == (201, "true"), "the master had it"
    app.extensions["idempotency"].close(app)
