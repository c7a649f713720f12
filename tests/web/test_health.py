"""The health: ``GET /health``, ``idempotency.health()`` and ``idempotency.stats()``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import requests
from flask import Flask

from flask_idempotent import Idempotency, create_blueprint, idempotent

from .conftest import Runs, Server, StoreUnderTest, eventually, setting_names


def with_health(app: Flask, runs: Runs, **options: Any) -> Flask:
    app.register_blueprint(create_blueprint(**options))
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    return app


def asked(server: Server, path: str = "/health") -> requests.Response:
    answer = server.request("GET", path)
    report = answer.json()
    assert set(report) == {"status", "message", "stats"}
    assert set(report["stats"]) == {"isRedisAvailable", "inMemoryCacheSize", "cacheType"}
    assert isinstance(report["message"], str)
    assert len(report["message"]) > 10
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.status_code == (503 if report["status"] == "unhealthy" else 200)
    extension: Idempotency = server.app.extensions["idempotency"]
    assert {**extension.health(server.app), "stats": extension.stats(server.app)} == report, "all three say the same"
    return answer


def test_a_store_that_works_is_healthy(
    store: StoreUnderTest, make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    server = serve(with_health(make_app(), runs))
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
    assert eventually(lambda: asked(server).json()["status"] == "healthy")
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
    assert eventually(lambda: asked(server).json()["status"] == "healthy")


@pytest.mark.redis
def test_the_report_shows_neither_addresses_nor_passwords(
    new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    redis = new_redis("--requirepass", "tell-tale")
    url = redis.url.replace("redis://", "redis://:tell-tale@")
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=url)
    Idempotency(app)
    answer = asked(serve(with_health(app, runs)))
    assert answer.json()["status"] == "degraded"
    for secret in ("tell-tale", "127.0.0.1", str(redis.port), "Error"):
        assert secret not in answer.text


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
