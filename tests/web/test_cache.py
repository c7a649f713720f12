"""``IdempotencyCache``: plain results by key, for code outside of a request."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask

from flask_idempotent import Idempotency, IdempotencyCache, StoreError, idempotent

from .conftest import Runs, Server, StoreUnderTest, assert_original, assert_replay, eventually, setting_names

RESULTS: list[Any] = [
    {"id": 1, "items": [1, 2.5, None, True, "é"]},
    [1, [2, {"a": []}]],
    "text ✓",
    1,
    -1.5,
    2**80,
    True,
    # falsy, and results all the same
    None,
    False,
    0,
    0.0,
    "",
    [],
    {},
]


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_a_result_comes_back_as_it_was(make_app: Callable[..., Flask], store: StoreUnderTest, result: Any) -> None:
    cache = IdempotencyCache(make_app())
    assert cache.get("job") is None
    assert not cache.exists("job")
    cache.set("job", result)
    for reader in (cache, *(IdempotencyCache(make_app()) for _ in range(store.workers - 1))):
        assert reader.get("job", default="absent") == result
        assert type(reader.get("job", default="absent")) is type(result)
        assert reader.exists("job")


def test_what_is_not_there_is_the_default(make_app: Callable[..., Flask]) -> None:
    cache = IdempotencyCache(make_app())
    assert cache.get("job") is None
    assert cache.get("job", 0) == 0
    assert cache.get("job", default=[]) == []
    assert cache.exists("job") is False
    assert cache.delete("job") is False


def test_a_deleted_result_is_gone_and_delete_says_whether_there_was_one(make_app: Callable[..., Flask]) -> None:
    cache = IdempotencyCache(make_app())
    cache.set("job", None)
    assert cache.delete("job") is True
    assert cache.delete("job") is False
    assert not cache.exists("job")
    assert cache.get("job", "absent") == "absent"


def test_a_later_result_replaces_an_earlier_one(make_app: Callable[..., Flask]) -> None:
    cache = IdempotencyCache(make_app())
    for number in range(3):
        cache.set("job", number)
    assert cache.get("job") == 2


def test_keys_are_apart(make_app: Callable[..., Flask]) -> None:
    cache = IdempotencyCache(make_app())
    keys = ["a", "A", "a ", " a", "a:b", "é", "ключ", "x" * 10_000, "a\0b", "{a}", "\ud800" * 0 + "🐍"]
    for number, key in enumerate(keys):
        cache.set(key, number)
    assert [cache.get(key) for key in keys] == list(range(len(keys)))


@pytest.mark.parametrize("key", ["", None, 5, b"bytes", ["a"]], ids=repr)
def test_something_that_is_no_key_is_refused(make_app: Callable[..., Flask], key: Any) -> None:
    cache = IdempotencyCache(make_app())
    for use in (cache.get, cache.exists, cache.delete, lambda key: cache.set(key, 1)):
        with pytest.raises(ValueError, match="a key must be a non-empty string"):
            use(key)


@pytest.mark.parametrize(
    ("result", "error"),
    [(object(), TypeError), ({1, 2}, TypeError), (b"x", TypeError), (math.nan, ValueError), ([math.inf], ValueError)],
    ids=repr,
)
def test_what_json_cannot_say_is_refused_and_leaves_what_was_there(
    make_app: Callable[..., Flask], result: Any, error: type[Exception]
) -> None:
    cache = IdempotencyCache(make_app())
    cache.set("job", "kept")
    with pytest.raises(error):
        cache.set("job", result)
    assert cache.get("job") == "kept"


# --- Retention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["of the cache", "of the call", "a timedelta"])
def test_a_result_is_kept_for_its_retention(make_app: Callable[..., Flask], how: str) -> None:
    ttl = {"of the cache": 0.3, "of the call": 600.0, "a timedelta": timedelta(milliseconds=300)}[how]
    cache = IdempotencyCache(make_app(), ttl=ttl)
    began = time.monotonic()
    cache.set("job", 1, **({"ttl": 0.3} if how == "of the call" else {}))
    cache.set("stays", 1, ttl=600)
    if time.monotonic() - began < 0.25:
        assert cache.exists("job")
    eventually(lambda: not cache.exists("job"), within=3)
    assert time.monotonic() - began >= 0.29
    assert cache.get("job", "absent") == "absent"
    assert cache.get("stays") == 1


@pytest.mark.redis
def test_the_default_retention_is_600_seconds_and_the_prefix_is_idempotency(
    redis_server: Any, bare_app: Callable[..., Flask]
) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url)
    Idempotency(app)
    IdempotencyCache(app).set("tell-tale", "result")
    with redis_server.client() as client:
        (name,) = client.keys("*")
        assert name.startswith(b"idempotency:{")
        assert b"tell-tale" not in name
        assert 598_000 < client.pttl(name) <= 600_000


@pytest.mark.redis
@pytest.mark.parametrize("setting", ["key_prefix", "cache_key_prefix"])
def test_the_prefix_is_a_setting(redis_server: Any, bare_app: Callable[..., Flask], setting: str) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url, **setting_names({setting: "shop-1:"}))
    Idempotency(app)
    IdempotencyCache(app).set("job", 1)
    with redis_server.client() as client:
        assert [name[:8] for name in client.keys("*")] == [b"shop-1:{"]


@pytest.mark.parametrize("ttl", [0, -1, "60", math.nan, math.inf, None, True, timedelta(days=-1)], ids=repr)
def test_an_impossible_retention_is_refused(make_app: Callable[..., Flask], ttl: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        IdempotencyCache(make_app(), ttl=ttl)
    if ttl is not None:  # which means the cache's own
        with pytest.raises(ValueError, match="must be"):
            IdempotencyCache(make_app()).set("job", 1, ttl=ttl)


# --- Instances ------------------------------------------------------------------------------------------------------


def test_several_instances_of_one_app_share_their_results(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    one, two = IdempotencyCache(app), IdempotencyCache(app, ttl=60)
    one.set("job", "of one")
    assert two.get("job") == "of one"
    assert two.delete("job")
    assert not one.exists("job")


@pytest.mark.redis
def test_several_workers_on_one_redis_share_their_results(redis_server: Any, bare_app: Callable[..., Flask]) -> None:
    caches = []
    for _ in range(3):
        app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url)
        Idempotency(app)
        caches.append(IdempotencyCache(app))
    for number, cache in enumerate(caches):
        cache.set("job", number)
        assert [reader.get("job") for reader in caches] == [number] * 3
    assert caches[0].delete("job")
    assert [cache.exists("job") for cache in caches] == [False] * 3
    assert [cache.get("job", "absent") for cache in caches] == ["absent"] * 3


def test_apps_of_other_names_do_not_share_their_results(store: StoreUnderTest, make_app: Callable[..., Flask]) -> None:
    shop, bank = IdempotencyCache(make_app("shop")), IdempotencyCache(make_app("bank"))
    shop.set("job", "of the shop")
    assert bank.get("job", "absent") == "absent"


def test_results_and_requests_are_apart(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    cache, server = IdempotencyCache(app), serve(app)
    cache.set("k", "result")
    first = server.post(key="k")
    assert_original(first)
    assert cache.get("k") == "result"
    assert cache.delete("k")
    assert_replay(server.post(key="k"), first)


def test_without_an_app_it_is_the_current_one(make_app: Callable[..., Flask]) -> None:
    shop, bank, cache = make_app("shop"), make_app("bank"), IdempotencyCache()
    with shop.app_context():
        cache.set("job", "shop")
    with bank.app_context():
        assert cache.get("job", "absent") == "absent"
        cache.set("job", "bank")
    with shop.app_context():
        assert cache.get("job") == "shop"
    with pytest.raises(RuntimeError, match="application context"):
        cache.get("job")


def test_without_the_extension_it_says_what_is_missing(bare_app: Callable[..., Flask]) -> None:
    with pytest.raises(RuntimeError, match="Idempotency is not set up on the app 'shop'"):
        IdempotencyCache(bare_app()).get("job")


def test_it_works_in_a_view_and_outside_of_requests(
    make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    app, cache = make_app(), IdempotencyCache()

    @app.post("/")
    def work() -> Any:
        if not cache.exists("job"):
            cache.set("job", {"done": True})
            return {"new": True}
        return cache.get("job")

    server = serve(app)
    assert [server.post().json() for _ in range(2)] == [{"new": True}, {"done": True}]
    assert IdempotencyCache(app).get("job") == {"done": True}


# --- Redis is lost --------------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_without_redis_this_process_goes_on_and_writes_back(new_redis: Any, bare_app: Callable[..., Flask]) -> None:
    redis = new_redis().start()
    caches = []
    for _ in range(2):
        app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url)
        Idempotency(app)
        caches.append(IdempotencyCache(app))
    here, there = caches
    here.set("before", 1)
    here.set("deleted", 1)
    redis.stop()
    assert here.get("before") == 1
    here.set("during", 0)
    assert here.get("during", "absent") == 0
    assert here.exists("during")
    assert here.delete("deleted") is True
    assert not here.exists("deleted")
    redis.start()  # empty
    assert eventually(lambda: there.exists("during")) is True
    assert there.get("during", "absent") == 0
    assert not there.exists("deleted")


@pytest.mark.redis
@pytest.mark.parametrize("on_outage", ["reject", "execute"])
def test_without_a_local_tier_the_loss_of_redis_is_a_store_error(
    new_redis: Any, bare_app: Callable[..., Flask], on_outage: str
) -> None:
    redis = new_redis().start()
    settings = {"local_tier": None, "on_outage": on_outage}
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis.url, **setting_names(settings))
    Idempotency(app)
    cache = IdempotencyCache(app)
    cache.set("job", 1)
    redis.stop()
    for use in (cache.get, cache.exists, cache.delete, lambda key: cache.set(key, 1)):
        with pytest.raises(StoreError) as caught:
            use("job")
        assert caught.value.outage
    redis.start()
    eventually(lambda: app.extensions["idempotency"].stats(app)["isRedisAvailable"])
    assert not cache.exists("job"), "Redis came back empty"
    cache.set("job", 2)
    assert cache.get("job") == 2


@pytest.mark.redis
def test_something_else_under_the_key_is_no_result(redis_server: Any, bare_app: Callable[..., Flask]) -> None:
    """Nothing read from the store is executed, and nothing that is no result is taken for one."""
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url)
    Idempotency(app)
    cache = IdempotencyCache(app)
    cache.set("job", 1)
    with redis_server.client() as client:
        (name,) = client.keys("*")
        for foreign in (b"", b"cos\nsystem\n(S'true'\ntR.", b"\x02J{}", b"J1"):
            client.set(name, foreign)
            assert cache.get("job", "absent") == "absent"
        for damaged in (b"\x01J", b"\x01J{", b"\x01J\xff"):
            client.set(name, damaged)
            with pytest.raises((ValueError, StoreError)):
                cache.get("job", "absent")
