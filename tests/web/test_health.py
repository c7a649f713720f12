"""The health: ``GET /health``, ``idempotency.health()`` and ``idempotency.stats()``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask

from flask_idempotent import Idempotency, create_blueprint, health, idempotent
from flask_idempotent.config import Settings
from flask_idempotent.core.store import Report
from flask_idempotent.state import AppState, app_state
from flask_idempotent.stores.memory import MemoryStore, RecordCache

from ..servers.link import Link
from ..servers.standalone import User
from .conftest import Runs, Server, StoreUnderTest, eventually, setting_names

ALONE = setting_names({"local_tier": None, "on_outage": "reject"})


def with_health(app: Flask, runs: Runs, **options: Any) -> Flask:
    app.register_blueprint(create_blueprint(**options))
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    return app


def asked(server: Server, path: str = "/health", *, changing: bool = False) -> requests.Response:
    """The health, and whether the extension's methods say the same, unless it is about to change."""
    answer = server.request("GET", path)
    report = answer.json()
    assert set(report) == {"status", "message", "stats", "since", "waiting", "breaker", "warnings"}
    assert set(report["stats"]) == {"isRedisAvailable", "inMemoryCacheSize", "cacheType"}
    assert report["since"] is None or report["status"] != "healthy"
    assert isinstance(report["message"], str)
    assert len(report["message"]) > 10
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.status_code == (503 if report["status"] == "unhealthy" else 200)
    extension: Idempotency = server.app.extensions["idempotency"]
    if changing:
        return answer
    again = {**extension.health(server.app), "stats": extension.stats(server.app)}
    assert set(again) == set(report)
    for name in ("status", "message", "stats", "warnings"):  # the others change as time passes
        assert again[name] == report[name], "all three say the same"
    return answer


def test_a_store_that_works_is_healthy(
    store: StoreUnderTest, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs, tmp_path: Path
) -> None:
    app = bare_app(**{**store.config, "IDEMPOTENCY_SHARED_PATH": str(tmp_path / "records.sqlite")})
    Idempotency(app)
    server = serve(with_health(app, runs))
    on_redis = store.redis is not None
    for count in range(3):
        report = asked(server).json()
        assert report["status"] == "healthy"
        assert report["stats"] == {
            "isRedisAvailable": on_redis,
            "inMemoryCacheSize": count,
            "cacheType": "redis" if on_redis else "memory",
        }
        assert ("Redis" in report["message"]) is on_redis
        server.post(key=f"k-{count}")


def test_the_number_of_records_falls_when_they_expire(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    server = serve(with_health(make_app(ttl=0.4, lease=0.2), runs))
    extension: Idempotency = server.app.extensions["idempotency"]
    assert server.post(key="k").status_code == 201
    assert eventually(lambda: extension.stats()["inMemoryCacheSize"] == 0, within=3)
    assert asked(server).json()["stats"]["inMemoryCacheSize"] == 0


@pytest.mark.redis
def test_without_a_local_tier_nothing_is_held_in_memory(
    redis_server: Any, bare_app: Any, serve: Any, runs: Runs
) -> None:
    app = bare_app(
        IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url, **setting_names({"local_tier": None, "on_outage": "reject"})
    )
    Idempotency(app)
    server = serve(with_health(app, runs))
    server.post(key="k")
    report = asked(server).json()
    assert report["status"] == "healthy"
    assert report["stats"] == {"isRedisAvailable": True, "inMemoryCacheSize": 0, "cacheType": "redis"}


LOST = [
    ("local", "memory", "degraded", 201, "memory"),
    ("execute", "memory", "degraded", 201, "memory"),
    ("reject", "memory", "unhealthy", 503, "memory"),
    ("execute", None, "degraded", 201, "redis"),
    ("reject", None, "unhealthy", 503, "redis"),
]


@pytest.mark.redis
@pytest.mark.parametrize(("on_outage", "local_tier", "status", "new_request", "cache_type"), LOST)
def test_the_loss_of_redis_is_reported_and_so_is_its_return(
    new_redis: Any,
    bare_app: Callable[..., Flask],
    serve: Callable[..., Server],
    runs: Runs,
    on_outage: str,
    local_tier: str | None,
    status: str,
    new_request: int,
    cache_type: str,
) -> None:
    redis = new_redis().start()
    settings = setting_names({"on_outage": on_outage, "local_tier": local_tier})
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url, **settings)
    Idempotency(app)
    server = serve(with_health(app, runs))
    assert server.post(key="k").status_code == 201
    assert asked(server).json()["status"] == "healthy"
    redis.stop()
    for _ in range(3):  # the health is asked before and after the breaker has opened
        report = asked(server).json()
        assert report["status"] == status
        assert "Redis" in report["message"]
        assert (report["stats"]["isRedisAvailable"], report["stats"]["cacheType"]) == (False, cache_type)
        assert server.post(key="new").status_code == new_request, "the health says what new requests meet"
    redis.start()
    back = eventually(lambda: (answer := server.request("GET", "/health")).json()["status"] == "healthy" and answer)
    assert back.status_code == 200
    assert back.json()["stats"]["isRedisAvailable"] is True
    assert back.json()["stats"]["cacheType"] == "redis"
    assert eventually(lambda: server.post(key="later").status_code == 201)


@pytest.mark.redis
def test_an_app_whose_redis_was_never_there_starts_and_says_so(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis()
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url)
    Idempotency(app)
    server = serve(with_health(app, runs))
    assert asked(server).json()["status"] == "degraded"
    assert server.post(key="k").status_code == 201
    redis.start()
    assert eventually(lambda: asked(server, changing=True).json()["status"] == "healthy")
    assert runs.count == 1


@pytest.mark.redis
def test_the_health_of_a_frozen_redis_is_told_in_a_bounded_time(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis().start()
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url, IDEMPOTENCY_STORE_TIMEOUT=0.2)
    Idempotency(app)
    server = serve(with_health(app, runs))
    asked(server)
    redis.freeze()
    answer = server.request("GET", "/health", timeout=3)
    assert answer.json()["status"] == "degraded"
    redis.thaw()
    assert eventually(lambda: asked(server, changing=True).json()["status"] == "healthy")


@pytest.mark.redis
def test_the_report_shows_neither_addresses_nor_passwords(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis("--requirepass", "tell-tale")
    url = redis.url.replace("redis://", "redis://:tell-tale@")
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=url)
    Idempotency(app)
    server = serve(with_health(app, runs))
    assert_secret(asked(server), "degraded", redis.port)


@pytest.mark.redis
def test_the_warnings_show_neither_addresses_nor_passwords(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis("--maxmemory-policy", "allkeys-lru", password="tell-tale").start()
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url, **ALONE)
    Idempotency(app)
    answer = asked(serve(with_health(app, runs)))
    assert len(answer.json()["warnings"]) == 2
    assert_secret(answer, "healthy", redis.port)


def assert_secret(answer: requests.Response, status: str, port: int) -> None:
    assert answer.json()["status"] == status
    for secret in ("tell-tale", "127.0.0.1", str(port), "Error"):
        assert secret not in answer.text


@pytest.mark.redis
@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({"persistent": True}, []),
        ({}, ["Redis keeps nothing over a restart; set appendonly yes"]),
        (
            {"user": User("worker", "pw", ["~*", "&*", "+@all", "-info", "-config"])},
            ["unknown whether Redis evicts", "unknown whether Redis keeps", "unknown whether this Redis is the master"],
        ),
    ],
    ids=["well", "forgetful", "silent"],
)
def test_what_may_lose_records_is_a_warning_and_no_ill_health(
    new_redis: Any,
    bare_app: Callable[..., Flask],
    serve: Callable[..., Server],
    runs: Runs,
    options: dict[str, Any],
    warnings: list[str],
) -> None:
    redis = new_redis(**options).start()
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.user_url if redis.user else redis.url, **ALONE)
    Idempotency(app)
    server = serve(with_health(app, runs))
    for _ in range(2):
        report = asked(server).json()
        assert report["status"] == "healthy"
        assert [told[: len(start)] for told, start in zip(report["warnings"], warnings, strict=True)] == warnings


@pytest.mark.redis
def test_the_health_costs_one_ping_but_for_once_a_minute(
    redis_server: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    link = Link(redis_server.port)
    try:
        app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=f"redis://127.0.0.1:{link.port}", **ALONE)
        Idempotency(app)
        server = serve(with_health(app, runs))
        server.request("GET", "/health")
        sent = link.asked(b"*")
        for _ in range(5):
            assert server.request("GET", "/health").status_code == 200
        assert (link.asked(b"*") - sent, link.asked(b"PING")) == (5, 6)
    finally:
        app.extensions["idempotency"].close(app)
        link.close()


@pytest.mark.redis
def test_the_records_that_redis_misses_are_counted(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis()
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url)
    Idempotency(app)
    server = serve(with_health(app, runs))
    for number in range(3):
        server.post(key=f"k-{number}")
    assert asked(server).json()["waiting"] == 3
    redis.start()
    assert eventually(lambda: asked(server, changing=True).json()["waiting"] == 0)


def test_an_outage_is_told_with_its_beginning_and_the_breaker() -> None:
    class Cut(MemoryStore):
        def report(self) -> Report:
            return Report("memory", outage="away", waiting=2, since=1_800_000_000.25, breaker="open")

    state = AppState(Settings(), Cut(RecordCache(1)), None, None)  # type: ignore[arg-type]
    assert health.check(state) == {
        "status": "degraded",
        "message": "Redis cannot be used; this process keeps its own records until it can.",
        "stats": {"isRedisAvailable": False, "inMemoryCacheSize": 0, "cacheType": "memory"},
        "since": "2027-01-15T08:00:00.250000+00:00",
        "waiting": 2,
        "breaker": "open",
        "warnings": [],
    }


@pytest.mark.redis
def test_a_redis_that_refuses_this_client_is_unhealthy(
    redis_server: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    """A wrong password is no outage: nothing papers over it."""
    url = redis_server.url.replace("redis://", "redis://nobody:wrong@")
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=url)
    Idempotency(app)
    server = serve(with_health(app, runs))
    assert asked(server).json()["status"] == "unhealthy"
    assert server.post(key="k").status_code == 503
    assert runs.count == 0


def test_the_health_has_the_prefix_and_the_name_of_its_blueprint(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    app = with_health(make_app(), runs, url_prefix="/api/idempotency", name="once")
    server = serve(app)
    assert asked(server, "/api/idempotency/health").json()["status"] == "healthy"
    assert server.request("GET", "/health").status_code == 404
    assert server.request("HEAD", "/api/idempotency/health").status_code == 200
    assert server.post("/api/idempotency/health").status_code == 405
    assert server.post("/api/idempotency/checkout").status_code == 404, "nothing is sold"
    assert "once.checkout" not in app.view_functions


def test_the_health_takes_no_notice_of_keys(make_app: Callable[..., Flask], serve: Any, runs: Runs) -> None:
    server = serve(with_health(make_app(required=True), runs))
    assert server.request("GET", "/health", key="a, b").status_code == 200


def test_the_methods_find_their_app(store: StoreUnderTest, bare_app: Callable[..., Flask]) -> None:
    extension = Idempotency()
    one, two = (bare_app(name, **store.config) for name in ("one", "two"))
    with pytest.raises(RuntimeError, match="name the app"):
        extension.health()
    extension.init_app(one)
    assert extension.health()["status"] == extension.health(one)["status"] == "healthy"
    extension.init_app(two)
    with pytest.raises(RuntimeError, match="name the app"):
        extension.stats()
    with two.app_context():
        assert extension.stats()["cacheType"] == extension.stats(two)["cacheType"]
    other = bare_app("other", **store.config)
    with pytest.raises(RuntimeError, match="not set up on the app 'other'"):
        extension.health(other)


def test_a_full_store_is_unhealthy_until_it_takes_a_key_again(bare_app: Callable[..., Flask]) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache", IDEMPOTENCY_CACHE_THRESHOLD=2)
    idempotency = Idempotency(app)
    app.post("/")(idempotent(lambda: "done"))
    client = app.test_client()
    answers = [client.post("/", headers={"Idempotency-Key": f"k{number}"}).status_code for number in range(3)]
    assert answers == [200, 200, 503]
    told = idempotency.health(app)
    assert (told["status"], "full" in told["message"]) == ("unhealthy", True)
    app_state(app).store.drop_copies()  # type: ignore[attr-defined]
    assert client.post("/", headers={"Idempotency-Key": "k3"}).status_code == 200
    assert idempotency.health(app)["status"] == "healthy"
