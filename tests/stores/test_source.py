"""Which store the settings and the environment name, before anything is opened."""

from __future__ import annotations

from typing import Any

import pytest

from flask_idempotent.stores.source import DEFAULTS, environment_url, kind, read_source, refusal

URL = "redis://localhost:6390/2"


def chosen(config: dict[str, Any], environ: dict[str, str] | None = None) -> dict[str, Any]:
    settings, mistakes = read_source(config, environ or {})
    assert mistakes == []
    return settings


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("RedisCache", "redis"),
        ("redis", "redis"),
        ("flask_caching.backends.RedisCache", "redis"),
        ("flask_caching.backends.rediscache.RedisCache", "redis"),
        ("SimpleCache", "simple"),
        ("simple", "simple"),
        ("NullCache", "null"),
        ("SASLMemcachedCache", "saslmemcached"),
    ],
)
def test_a_type_has_one_name_however_it_is_spelt(spelling: str, name: str) -> None:
    assert kind(spelling) == name


def test_without_any_setting_records_are_in_memory() -> None:
    assert chosen({}) == DEFAULTS
    assert chosen({"SECRET_KEY": "x", "CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": URL}) == DEFAULTS


@pytest.mark.parametrize("spelling", ["RedisCache", "redis", "flask_caching.backends.RedisCache"])
def test_redis_by_its_type(spelling: str) -> None:
    settings = chosen({"IDEMPOTENCY_CACHE_TYPE": spelling})
    assert settings["CACHE_TYPE"] == "RedisCache"
    assert (settings["CACHE_REDIS_HOST"], settings["CACHE_REDIS_PORT"]) == ("localhost", 6379)


@pytest.mark.parametrize("key", ["URL", "HOST", "PORT", "DB", "PASSWORD"])
def test_redis_by_any_of_its_settings(key: str) -> None:
    values = {"URL": URL, "HOST": "redis.example", "PORT": 6390, "DB": 3, "PASSWORD": "secret"}
    settings = chosen({f"IDEMPOTENCY_CACHE_REDIS_{key}": values[key]})
    assert settings["CACHE_TYPE"] == "RedisCache"
    assert settings[f"CACHE_REDIS_{key}"] == values[key]


def test_a_setting_that_is_none_is_not_given() -> None:
    """What ``os.environ.get("REDIS_URL")`` gives where there is none must not lead to a Redis on localhost."""
    assert chosen({"IDEMPOTENCY_CACHE_REDIS_URL": None})["CACHE_TYPE"] == "SimpleCache"


@pytest.mark.parametrize(
    ("config", "environ", "url"),
    [
        ({}, {"REDIS_URL": URL}, URL),
        ({}, {"REDIS_URL": f"  {URL}\n"}, URL),
        ({}, {"REDIS_URL": " "}, None),
        ({"IDEMPOTENCY_CACHE_TYPE": "redis"}, {"REDIS_URL": URL}, URL),
        ({"IDEMPOTENCY_CACHE_REDIS_PASSWORD": "p"}, {"REDIS_URL": URL}, URL),
        ({"IDEMPOTENCY_CACHE_TYPE": "SimpleCache"}, {"REDIS_URL": URL}, None),
        ({"IDEMPOTENCY_CACHE_REDIS_URL": "redis://mine"}, {"REDIS_URL": URL}, "redis://mine"),
        ({"IDEMPOTENCY_CACHE_REDIS_HOST": "mine"}, {"REDIS_URL": URL}, None),
    ],
)
def test_settings_come_before_the_environment(config: dict[str, Any], environ: dict[str, str], url: str | None) -> None:
    settings = chosen(config, environ)
    assert settings["CACHE_REDIS_URL"] == url
    redis_is_meant = url is not None or "IDEMPOTENCY_CACHE_REDIS_HOST" in config
    assert settings["CACHE_TYPE"] == ("RedisCache" if redis_is_meant else "SimpleCache")


UPSTASH, TOKEN = "UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"


@pytest.mark.parametrize(
    ("rest", "token", "url"),
    [
        ("https://eu1-x.upstash.io", "AbC", "rediss://default:AbC@eu1-x.upstash.io:6379"),
        ("https://eu1-x.upstash.io/", " AbC\n", "rediss://default:AbC@eu1-x.upstash.io:6379"),
        ("https://eu1-x.upstash.io:6380", "AbC", "rediss://default:AbC@eu1-x.upstash.io:6380"),
        ("http://127.0.0.1:8079", "a/b@c:d#e?f%g", "redis://default:a%2Fb%40c%3Ad%23e%3Ff%25g@127.0.0.1:8079"),
        ("http://[::1]:8079", "AbC", "redis://default:AbC@[::1]:8079"),
    ],
)
def test_upstash_speaks_redis_with_its_token(rest: str, token: str, url: str) -> None:
    environ = {UPSTASH: rest, TOKEN: token, "REDIS_URL": "redis://other"}
    assert environment_url(environ) == (url, [])
    assert chosen({}, environ)["CACHE_REDIS_URL"] == url


@pytest.mark.parametrize(
    "environ",
    [
        {UPSTASH: "https://x.upstash.io"},
        {TOKEN: "secret"},
        {UPSTASH: "x.upstash.io", TOKEN: "secret"},
        {UPSTASH: "rediss://x.upstash.io:6379", TOKEN: "secret"},
        {UPSTASH: "https://", TOKEN: "secret"},
        {UPSTASH: "https://x:port", TOKEN: "secret"},
        {UPSTASH: "https://user:secret@x.upstash.io", TOKEN: "secret"},
    ],
)
def test_half_an_upstash_is_a_mistake_that_tells_no_secret(environ: dict[str, str]) -> None:
    url, mistakes = environment_url(environ | {"REDIS_URL": URL})
    assert url is None
    (mistake,) = mistakes
    assert UPSTASH in mistake
    assert "secret" not in mistake


@pytest.mark.parametrize(
    ("cache_type", "why"),
    [
        ("NullCache", "stores nothing"),
        ("null", "stores nothing"),
        ("FileSystemCache", "two processes"),
        ("filesystem", "two processes"),
        ("MemcachedCache", "evicts live records"),
        ("SASLMemcachedCache", "evicts live records"),
        ("SpreadSASLMemcachedCache", "evicts live records"),
        ("UWSGICache", "not known to be safe"),
        ("my.own.Backend", "not known to be safe"),
        ("", "not known to be safe"),
    ],
)
def test_any_other_type_is_refused_with_the_reason_and_the_remedy(cache_type: str, why: str) -> None:
    said = refusal(cache_type)
    assert said is not None
    assert why in said
    _, mistakes = read_source({"IDEMPOTENCY_CACHE_TYPE": cache_type, "IDEMPOTENCY_CACHE_DIR": "/tmp/x"}, {})
    assert any(said in mistake and "SimpleCache" in mistake and "RedisCache" in mistake for mistake in mistakes)


@pytest.mark.parametrize(
    ("config", "mentions"),
    [
        ({"TYPE": 7}, ["IDEMPOTENCY_CACHE_TYPE", "7"]),
        ({"THRESHOLD": 0}, ["IDEMPOTENCY_CACHE_THRESHOLD", "0"]),
        ({"THRESHOLD": True}, ["IDEMPOTENCY_CACHE_THRESHOLD"]),
        ({"THRESHOLD": "500"}, ["IDEMPOTENCY_CACHE_THRESHOLD", "'500'"]),
        ({"REDIS_PORT": "6379"}, ["IDEMPOTENCY_CACHE_REDIS_PORT", "'6379'"]),
        ({"REDIS_PORT": 65536}, ["IDEMPOTENCY_CACHE_REDIS_PORT"]),
        ({"REDIS_URL": "localhost:6379"}, ["redis://", "rediss://", "unix://"]),
        ({"REDIS_URL": "http://:secret@host"}, ["redis://"]),
        ({"REDIS_URL": ""}, ["redis://"]),
        ({"OPTIONS": [1]}, ["IDEMPOTENCY_CACHE_OPTIONS"]),
        ({"REDIS_URI": URL}, ["IDEMPOTENCY_CACHE_REDIS_URI", "IDEMPOTENCY_CACHE_REDIS_URL"]),
        ({"TRESHOLD": 5}, ["IDEMPOTENCY_CACHE_TRESHOLD", "IDEMPOTENCY_CACHE_THRESHOLD"]),
    ],
)
def test_a_mistake_is_named_by_its_key(config: dict[str, Any], mentions: list[str]) -> None:
    _, mistakes = read_source({f"IDEMPOTENCY_CACHE_{key}": value for key, value in config.items()}, {})
    assert len(mistakes) == 1
    assert [word for word in mentions if word not in mistakes[0]] == []
    assert "secret" not in mistakes[0]


def test_all_mistakes_are_told_at_once() -> None:
    config = {"IDEMPOTENCY_CACHE_THRESHOLD": 0, "IDEMPOTENCY_CACHE_REDIS_PORT": 0, "IDEMPOTENCY_CACHE_PREFIX": "x"}
    assert len(read_source(config, {TOKEN: "alone"})[1]) == 4
