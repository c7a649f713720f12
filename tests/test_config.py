"""Settings and the choice of the store: every mistake at once, by its key, and no secret in any message."""

from __future__ import annotations

import dataclasses
import math
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_idempotent import Idempotency
from flask_idempotent.config import (
    ROUTE_SETTINGS,
    ConfigurationError,
    Settings,
    check_route,
    duration,
    milliseconds,
    read_settings,
)
from flask_idempotent.core.store import OnOutage, Terms
from flask_idempotent.stores.source import DEFAULTS, environment_url, kind, read_source, refusal

MIB = 1024 * 1024
HALF_GIB = 512 * MIB
YEAR = 366 * 86400


def configured(**config: Any) -> Settings:
    """The settings of a config without mistakes, its keys written in lower case and without the prefix."""
    read, mistakes = read_settings({f"IDEMPOTENCY_{name.upper()}": value for name, value in config.items()})
    assert mistakes == []
    return read


def mistakes(**config: Any) -> list[str]:
    return read_settings({f"IDEMPOTENCY_{name.upper()}": value for name, value in config.items()})[1]


# Settings


def test_the_defaults_are_those_of_the_design() -> None:
    assert configured() == Settings(
        ttl=600.0,
        lease=30.0,
        wait=0.0,
        required=False,
        methods=frozenset({"POST", "PATCH"}),
        header="Idempotency-Key",
        form_field="idempotency_key",
        replay_header="Idempotent-Replayed",
        max_key_length=255,
        max_body=MIB,
        compress_over=1024,
        key_prefix="idempotency:",
        on_outage=OnOutage.LOCAL,
        on_crash="resume",
        store_timeout=None,
        max_runtime=3600.0,
        ignored_fields=frozenset({"csrf_token"}),
        docs_url=None,
    )


GOOD: list[tuple[str, Any, Any]] = [
    ("ttl", 86400, 86400.0),
    ("ttl", 0.5, 0.5),
    ("ttl", timedelta(days=1), 86400.0),
    ("ttl", 0.001, 0.001),
    ("ttl", YEAR, float(YEAR)),
    ("lease", 5, 5.0),
    ("lease", timedelta(milliseconds=1), 0.001),
    ("wait", 0, 0.0),
    ("wait", timedelta(0), 0.0),
    ("wait", 2.5, 2.5),
    ("required", True, True),
    ("methods", ["POST"], frozenset({"POST"})),
    ("methods", ("post", "Put", "DELETE", "PATCH"), frozenset({"POST", "PUT", "DELETE", "PATCH"})),
    ("methods", {"PUT"}, frozenset({"PUT"})),
    ("header", "X-Request-Id", "X-Request-Id"),
    ("form_field", "_key", "_key"),
    ("replay_header", "X-Replayed", "X-Replayed"),
    ("max_key_length", 1, 1),
    ("max_key_length", 4096, 4096),
    ("max_body", 0, 0),
    ("max_body", HALF_GIB, HALF_GIB),
    ("compress_over", 0, 0),
    ("compress_over", HALF_GIB, HALF_GIB),
    ("key_prefix", "shop/", "shop/"),
    ("on_outage", "reject", OnOutage.REJECT),
    ("on_outage", "execute", OnOutage.EXECUTE),
    ("on_outage", OnOutage.REJECT, OnOutage.REJECT),
    ("on_crash", "refuse", "refuse"),
    ("local_tier", "shared", "shared"),
    ("local_tier", "memory", "memory"),
    ("shared_path", "/run/shop/keys.db", Path("/run/shop/keys.db")),
    ("shared_path", Path("/run/shop/keys.db"), Path("/run/shop/keys.db")),
    ("shared_path", None, None),
    ("min_replicas", 2, 2),
    ("store_timeout", 0.1, 0.1),
    ("store_timeout", None, None),
    ("max_runtime", 60, 60.0),
    ("ignored_fields", (), frozenset()),
    ("ignored_fields", ["a", "b", "a"], frozenset({"a", "b"})),
    ("docs_url", "https://api.example/errors", "https://api.example/errors"),
    ("docs_url", "http://localhost/", "http://localhost/"),
    ("docs_url", None, None),
]


@pytest.mark.parametrize(("name", "value", "meant"), GOOD)
def test_a_setting_is_read_from_its_key(name: str, value: Any, meant: Any) -> None:
    read = getattr(configured(**{name: value}), name)
    assert (read, type(read)) == (meant, type(meant))


def test_every_setting_has_a_key_and_an_example_here() -> None:
    names = {field.name for field in dataclasses.fields(Settings)}
    covered = {name for name, _, _ in GOOD}
    assert covered == names
    assert names >= ROUTE_SETTINGS


NOT_A_TIME = (
    0,
    -1,
    "600",
    b"1",
    None,
    True,
    math.nan,
    math.inf,
    -math.inf,
    YEAR + 1,
    timedelta(0),
    timedelta(-1),
    [1],
    1j,
)
NOT_A_SIZE = (-1, 1.5, 1.0, "1024", None, True, HALF_GIB + 1)
NOT_A_NAME = ("", "a b", "a:b", 'a"b', "a,b", "ä", None, 1, b"X", "a\r\nb", "\x7f")

BAD: dict[str, tuple[Any, ...]] = {
    "ttl": NOT_A_TIME,
    "lease": NOT_A_TIME,
    "wait": tuple(value for value in NOT_A_TIME if value not in (0, timedelta(0)) or value is True),
    "required": ("yes", 1, 0, None, "True"),
    "methods": ((), "POST", ["GET"], ["POST", "HEAD"], ["POST", ""], ["POST", 1], None, 5, b"POST", [["POST"]], [{}]),
    "header": NOT_A_NAME,
    "form_field": NOT_A_NAME,
    "replay_header": NOT_A_NAME,
    "max_key_length": (0, 4097, *NOT_A_SIZE),
    "max_body": NOT_A_SIZE,
    "compress_over": NOT_A_SIZE,
    "key_prefix": ("", "a{b", "a}b", "a\nb", "a\x00", None, 1, b"a", lambda: "a"),
    "shared_path": ("keys.db", "", 1, b"/run/keys.db", Path("keys.db")),
    "min_replicas": (-1, 1.0, "1", None, True, 101),
    "local_tier": ("redis", "", 0, False, [], {}),
    "on_outage": ("", "LOCAL", "fallback", None, True, 0, []),
    "on_crash": ("", "RESUME", "retry", None, True, []),
    "store_timeout": tuple(value for value in NOT_A_TIME if value is not None),
    "max_runtime": NOT_A_TIME,
    "ignored_fields": ("csrf_token", [""], [1], [None], None, 5, b"ab", [["a"]], [{}]),
    "docs_url": (
        "",
        "example.com",
        "ftp://x",
        "//x",
        "javascript:alert(1)",
        1,
        b"https://x",
        "https://x/\r\nSet-Cookie: a=b",
    ),
}
bad = pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in BAD.items() for value in values], ids=repr
)


@bad
def test_an_impossible_value_is_reported_by_its_key_with_the_value_quoted(name: str, value: Any) -> None:
    (message,) = mistakes(**{name: value})
    assert message.startswith(f"IDEMPOTENCY_{name.upper()} ")
    assert repr(value) in message
    assert "must" in message


def test_an_impossible_value_is_tried_for_every_setting() -> None:
    assert set(BAD) == {field.name for field in dataclasses.fields(Settings)}


def test_a_number_that_no_float_can_hold_is_a_mistake_like_any_other() -> None:
    (message,) = mistakes(ttl=10**400)
    assert message.startswith("IDEMPOTENCY_TTL must be")


def test_every_mistake_is_reported_at_once() -> None:
    wrong = {name: values[0] for name, values in BAD.items()}
    reported = mistakes(**wrong, tll=1)
    assert len(reported) == len(wrong) + 1
    for name in (*wrong, "tll"):
        assert sum(message.startswith(f"IDEMPOTENCY_{name.upper()} ") for message in reported) == 1, name


def test_one_mistake_does_not_hide_in_good_company() -> None:
    read, reported = read_settings(
        {"IDEMPOTENCY_TTL": 5, "IDEMPOTENCY_LEASE": "5", "IDEMPOTENCY_WAIT": 1, "SECRET_KEY": 1}
    )
    assert reported == ["IDEMPOTENCY_LEASE must be a number of seconds or a timedelta, not '5'"]
    assert (read.ttl, read.wait) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("IDEMPOTENCY_TLL", "did you mean IDEMPOTENCY_TTL?"),
        ("IDEMPOTENCY_KEY_LENGTH", "did you mean IDEMPOTENCY_MAX_KEY_LENGTH?"),
        ("IDEMPOTENCY_ONOUTAGE", "did you mean IDEMPOTENCY_ON_OUTAGE?"),
        ("IDEMPOTENCY_QQQQ", "known are "),
    ],
)
def test_a_misspelt_key_is_reported_with_what_was_meant(key: str, remedy: str) -> None:
    (message,) = read_settings({key: "s3cret"})[1]
    assert message.startswith(f"{key} is not a setting")
    assert remedy in message
    assert "s3cret" not in message


def test_what_belongs_to_others_is_left_alone() -> None:
    config = {"IDEMPOTENCY_CACHE_TYPE": 7, "IDEMPOTENCY_CACHE_WHAT": 7, "CACHE_TYPE": 7, "TTL": 7, "idempotency_ttl": 7}
    assert read_settings(config) == (Settings(), [])


# What Flask-Caching calls it

SYNONYMS = [
    ("IDEMPOTENCY_CACHE_DEFAULT_TIMEOUT", "IDEMPOTENCY_TTL", 60, 90, "ttl"),
    ("IDEMPOTENCY_CACHE_KEY_PREFIX", "IDEMPOTENCY_KEY_PREFIX", "a:", "b:", "key_prefix"),
]


@pytest.mark.parametrize(("synonym", "key", "one", "two", "name"), SYNONYMS)
def test_flask_cachings_word_for_a_setting_counts_where_ours_is_not_given(
    synonym: str, key: str, one: Any, two: Any, name: str
) -> None:
    assert getattr(read_settings({synonym: one})[0], name) == one
    assert getattr(read_settings({synonym: one, key: two})[0], name) == two
    assert getattr(read_settings({key: two, synonym: one})[0], name) == two


@pytest.mark.parametrize(("synonym", "key", "one", "two", "name"), SYNONYMS)
def test_a_mistake_is_reported_by_the_key_that_was_written(
    synonym: str, key: str, one: Any, two: Any, name: str
) -> None:
    (message,) = read_settings({synonym: -1})[1]
    assert message.startswith(f"{synonym} ")
    (message,) = read_settings({synonym: one, key: -1})[1]
    assert message.startswith(f"{key} ")


# Settings that do not go together


@pytest.mark.parametrize("policy", ["reject", "execute"])
def test_without_a_local_tier_an_outage_needs_a_policy(policy: str) -> None:
    (message,) = mistakes(local_tier=None)
    assert "IDEMPOTENCY_ON_OUTAGE" in message
    assert "IDEMPOTENCY_LOCAL_TIER" in message
    assert repr(policy) in message
    assert configured(local_tier=None, on_outage=policy).local_tier is None


def test_a_contradiction_is_reported_together_with_the_other_mistakes() -> None:
    reported = mistakes(local_tier=None, ttl=-1, lease="x")
    assert len(reported) == 3
    for key in ("IDEMPOTENCY_TTL", "IDEMPOTENCY_LEASE", "IDEMPOTENCY_LOCAL_TIER"):
        assert sum(key in message for message in reported) == 1


def test_a_policy_that_was_misspelt_is_not_reported_as_another_one() -> None:
    (message,) = mistakes(local_tier=None, on_outage="rejct")
    assert message.startswith("IDEMPOTENCY_ON_OUTAGE must be one of")


# One route's own settings


@pytest.mark.parametrize(("name", "value", "meant"), [case for case in GOOD if case[0] in ROUTE_SETTINGS])
def test_a_route_may_have_its_own(name: str, value: Any, meant: Any) -> None:
    own = configured(header="X-Key", max_body=5).override(check_route({name: value}))
    assert getattr(own, name) == meant
    other = {"header": "X-Key", "max_body": 5} | {name: meant}
    assert own == dataclasses.replace(Settings(), **other)


@pytest.mark.parametrize(
    ("name", "value"), [(name, values[0]) for name, values in BAD.items() if name in ROUTE_SETTINGS], ids=repr
)
def test_a_routes_mistake_is_reported_by_the_name_of_its_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_route({name: value})
    (message,) = caught.value.mistakes
    assert message.startswith(f"@idempotent({name}=...) ")
    assert repr(value) in message


def test_all_mistakes_of_a_route_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_route({"ttl": -1, "wait": "x", "wiat": 1, "required": True})
    assert len(caught.value.mistakes) == 3
    for line in caught.value.mistakes:
        assert f"- {line}" in str(caught.value)


@pytest.mark.parametrize("name", ["key_prefix", "local_tier", "store_timeout"])
def test_what_belongs_to_the_app_cannot_be_set_for_one_route(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"@idempotent\({name}=...\) is not a setting"):
        check_route({name: "x"})


def test_a_route_cannot_ask_for_a_local_tier_that_the_app_has_not() -> None:
    app = configured(local_tier=None, on_outage="reject")
    with pytest.raises(ConfigurationError, match="IDEMPOTENCY_LOCAL_TIER"):
        app.override(check_route({"on_outage": "local"}))
    assert app.override(check_route({"on_outage": "execute"})).on_outage is OnOutage.EXECUTE


def test_settings_never_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().ttl = 5  # type: ignore[misc]


# Units


def test_the_guards_terms_are_in_milliseconds() -> None:
    read = configured(
        ttl=1.5, lease=2, wait=0.25, max_runtime=timedelta(minutes=1), on_crash="refuse", on_outage="reject"
    )
    assert read.terms == Terms(
        lease_ms=2000, ttl_ms=1500, wait_ms=250, max_runtime_ms=60_000, resume=False, on_outage=OnOutage.REJECT
    )
    assert configured().terms == Terms(lease_ms=30_000, ttl_ms=600_000)


@pytest.mark.parametrize(
    ("seconds", "ms"),
    [(0, 0), (0.0, 0), (0.0001, 1), (0.001, 1), (0.0015, 2), (0.25, 250), (1, 1000), (0.1 + 0.2, 300)],
)
def test_no_time_above_zero_is_rounded_to_nothing(seconds: float, ms: int) -> None:
    assert milliseconds(seconds) == ms


@given(st.floats(0.001, YEAR) | st.integers(1, YEAR))
@settings(deadline=None, max_examples=200)
def test_a_number_of_seconds_and_the_timedelta_are_the_same(seconds: float) -> None:
    span = timedelta(seconds=seconds)
    assert math.isclose(duration(span), duration(seconds), abs_tol=1e-6)
    assert milliseconds(duration(seconds)) >= 1


@pytest.mark.parametrize("value", [0.0009, YEAR + 0.001, timedelta(microseconds=999), timedelta.max])
def test_a_time_span_has_bounds_that_the_message_names(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^must be between 0\.001 and 31622400 seconds$"):
        duration(value)


# Which store

REST = {"UPSTASH_REDIS_REST_URL": "https://eu1.upstash.io", "UPSTASH_REDIS_REST_TOKEN": "t0k3n"}
REST_AS_REDIS = "rediss://default:t0k3n@eu1.upstash.io:6379"
ENVIRONMENT = {"REDIS_URL": "redis://env"}


def source(config: dict[str, Any] | None = None, environ: dict[str, str] | None = None) -> dict[str, Any]:
    """The store's settings where there is no mistake; keys of the config without the prefix."""
    read, wrong = read_source({f"IDEMPOTENCY_{key}": value for key, value in (config or {}).items()}, environ or {})
    assert wrong == []
    return read


def wrong_with(config: dict[str, Any], environ: dict[str, str] | None = None) -> list[str]:
    return read_source({f"IDEMPOTENCY_{key}": value for key, value in config.items()}, environ or {})[1]


@pytest.mark.parametrize(
    ("config", "environ", "cache_type", "url"),
    [
        ({}, {}, "SimpleCache", None),
        ({}, {"REDIS_URL": ""}, "SimpleCache", None),
        ({}, {"REDIS_URL": " "}, "SimpleCache", None),
        ({}, ENVIRONMENT, "RedisCache", "redis://env"),
        ({}, {"REDIS_URL": " redis://env\n"}, "RedisCache", "redis://env"),
        ({}, REST, "RedisCache", REST_AS_REDIS),
        ({}, ENVIRONMENT | REST, "RedisCache", REST_AS_REDIS),
        ({"CACHE_TYPE": None}, ENVIRONMENT, "RedisCache", "redis://env"),
        ({"CACHE_TYPE": "RedisCache"}, {}, "RedisCache", None),
        ({"CACHE_TYPE": "RedisCache"}, ENVIRONMENT, "RedisCache", "redis://env"),
        ({"CACHE_TYPE": "redis"}, REST, "RedisCache", REST_AS_REDIS),
        ({"CACHE_TYPE": "flask_caching.backends.RedisCache"}, {}, "RedisCache", None),
        ({"CACHE_TYPE": "SimpleCache"}, ENVIRONMENT | REST, "SimpleCache", None),
        ({"CACHE_TYPE": "simple"}, ENVIRONMENT, "SimpleCache", None),
        ({"CACHE_REDIS_URL": "redis://set"}, {}, "RedisCache", "redis://set"),
        ({"CACHE_REDIS_URL": "redis://set"}, ENVIRONMENT | REST, "RedisCache", "redis://set"),
        ({"CACHE_REDIS_URL": "unix:///run/redis.sock"}, {}, "RedisCache", "unix:///run/redis.sock"),
        ({"CACHE_REDIS_HOST": "set"}, ENVIRONMENT | REST, "RedisCache", None),
        ({"CACHE_REDIS_PORT": 6380}, {}, "RedisCache", None),
        ({"CACHE_REDIS_PASSWORD": "x"}, ENVIRONMENT, "RedisCache", "redis://env"),
        ({"CACHE_REDIS_URL": None}, {}, "SimpleCache", None),
        ({"CACHE_REDIS_URL": None}, ENVIRONMENT, "RedisCache", "redis://env"),
        ({"CACHE_REDIS_HOST": None}, REST, "RedisCache", REST_AS_REDIS),
        ({"CACHE_THRESHOLD": None, "CACHE_REDIS_PORT": None}, {}, "SimpleCache", None),
        ({"CACHE_THRESHOLD": 5}, {}, "SimpleCache", None),
        ({"CACHE_THRESHOLD": 5}, ENVIRONMENT, "RedisCache", "redis://env"),
    ],
)
def test_the_store_is_chosen_by_setting_then_environment_then_memory(
    config: dict[str, Any], environ: dict[str, str], cache_type: str, url: str | None
) -> None:
    read = source(config, environ)
    assert (read["CACHE_TYPE"], read["CACHE_REDIS_URL"]) == (cache_type, url)


def test_every_setting_of_flask_caching_is_ours_and_none_is_the_hosts() -> None:
    """Flask-Caching begins with a copy of app.config; a key that is left out would be the host's."""
    host = dict.fromkeys(DEFAULTS, "the host's")
    read, wrong = read_source(host | {"IDEMPOTENCY_CACHE_THRESHOLD": 5}, {})
    assert (read, wrong) == (DEFAULTS | {"CACHE_THRESHOLD": 5}, [])


def test_a_host_that_uses_every_flask_caching_setting_does_not_change_our_store() -> None:
    app = Flask("shop")
    app.config.update({key: object() for key in DEFAULTS})
    Idempotency(app)
    assert Idempotency.stats(app.extensions["idempotency"], app)["cacheType"] == "memory"


def test_settings_of_a_backend_are_passed_on() -> None:
    given = {
        "CACHE_TYPE": "RedisCache",
        "CACHE_REDIS_HOST": "h",
        "CACHE_REDIS_PORT": 6380,
        "CACHE_REDIS_DB": 3,
        "CACHE_REDIS_PASSWORD": "p",
        "CACHE_OPTIONS": {"client_name": "shop"},
    }
    assert source(given).items() >= given.items()


def test_reading_leaves_config_defaults_and_environment_as_they_were() -> None:
    config, environ, before = {"IDEMPOTENCY_CACHE_THRESHOLD": 5}, dict(REST), dict(DEFAULTS)
    read, _ = read_source(config, environ)
    read["CACHE_TYPE"] = "changed"
    assert (config, environ, before) == ({"IDEMPOTENCY_CACHE_THRESHOLD": 5}, REST, DEFAULTS)


# Types that cannot keep records


@pytest.mark.parametrize(
    ("cache_type", "why"),
    [
        ("NullCache", "stores nothing"),
        ("null", "stores nothing"),
        ("flask_caching.backends.NullCache", "stores nothing"),
        ("FileSystemCache", "two processes"),
        ("MemcachedCache", "evicts"),
        ("SASLMemcachedCache", "evicts"),
        ("SpreadSASLMemcachedCache", "evicts"),
        ("UWSGICache", "not known to be safe"),
        ("shop.caching.OurCache", "not known to be safe"),
        ("", "not known to be safe"),
    ],
)
def test_a_type_that_cannot_keep_records_is_refused_with_what_works_and_why(cache_type: str, why: str) -> None:
    (message,) = wrong_with({"CACHE_TYPE": cache_type}, ENVIRONMENT)
    assert message.startswith("IDEMPOTENCY_CACHE_TYPE ")
    assert repr(cache_type) in message
    assert why in message
    assert "SimpleCache" in message
    assert "RedisCache" in message
    assert refusal(cache_type) is not None


@pytest.mark.parametrize("cache_type", [5, ["RedisCache"], object, True])
def test_a_type_that_is_no_name_is_refused(cache_type: Any) -> None:
    (message,) = wrong_with({"CACHE_TYPE": cache_type})
    assert message.startswith("IDEMPOTENCY_CACHE_TYPE must be a name")
    assert repr(cache_type) in message


@pytest.mark.parametrize(
    ("cache_type", "name"),
    [
        ("RedisCache", "redis"),
        ("redis", "redis"),
        ("flask_caching.backends.RedisCache", "redis"),
        ("SimpleCache", "simple"),
    ],
)
def test_the_spellings_of_a_type_are_one_type(cache_type: str, name: str) -> None:
    assert kind(cache_type) == name
    assert refusal(cache_type) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("CACHE_THRESHOLD", value) for value in (0, -1, 1.5, "100", True)),
        *(("CACHE_REDIS_PORT", value) for value in (0, 65536, "6379", True, 6379.0)),
    ],
)
def test_an_impossible_setting_of_a_backend_is_reported_by_its_key_with_the_value_quoted(key: str, value: Any) -> None:
    (message,) = wrong_with({key: value})
    assert message.startswith(f"IDEMPOTENCY_{key} must be")
    assert repr(value) in message


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("CACHE_REDIS_ULR", "did you mean IDEMPOTENCY_CACHE_REDIS_URL?"),
        ("CACHE_TRESHOLD", "did you mean IDEMPOTENCY_CACHE_THRESHOLD?"),
        ("CACHE_QQQQQQ", "is not a setting of SimpleCache or the Redis caches"),
    ],
)
def test_a_misspelt_key_of_a_backend_is_reported_with_what_was_meant(key: str, hint: str) -> None:
    (message,) = wrong_with({key: "s3cret"})
    assert message.startswith(f"IDEMPOTENCY_{key} ")
    assert hint in message
    assert "s3cret" not in message


@pytest.mark.parametrize("cache_type", ["NullCache", 5, None, "RedisCache"])
def test_every_mistake_about_the_store_is_reported_at_once(cache_type: Any) -> None:
    reported = wrong_with({"CACHE_TYPE": cache_type, "CACHE_THRESHOLD": 0, "CACHE_REDIS_PORT": "x", "CACHE_OPTIONS": 5})
    keys = ["CACHE_THRESHOLD", "CACHE_REDIS_PORT", "CACHE_OPTIONS"]
    keys += ["CACHE_TYPE"] if cache_type in ("NullCache", 5) else []
    assert len(reported) == len(keys)
    for key in keys:
        assert sum(message.startswith(f"IDEMPOTENCY_{key} ") for message in reported) == 1, key


@pytest.mark.parametrize(
    ("config", "environ", "key"),
    [
        ({"CACHE_REDIS_URL": "https://h"}, {}, "IDEMPOTENCY_CACHE_REDIS_URL"),
        ({"CACHE_REDIS_URL": 5}, {}, "IDEMPOTENCY_CACHE_REDIS_URL"),
        ({"CACHE_REDIS_URL": "h:6379"}, {}, "IDEMPOTENCY_CACHE_REDIS_URL"),
        ({}, {"REDIS_URL": "h:6379"}, "REDIS_URL"),
        ({}, {"REDIS_URL": "http://h"}, "REDIS_URL"),
    ],
)
def test_a_redis_url_of_another_scheme_is_reported_by_the_key_that_it_came_from(
    config: dict[str, Any], environ: dict[str, str], key: str
) -> None:
    (message,) = wrong_with(config, environ)
    assert "must begin with redis://, rediss:// or unix://" in message
    assert message.startswith(f"{key} ")


def test_the_extension_reports_mistakes_of_both_kinds_at_once() -> None:
    app = Flask("shop")
    app.config.update(IDEMPOTENCY_TTL=-1, IDEMPOTENCY_CACHE_TYPE="NullCache", IDEMPOTENCY_LEESE=1)
    with pytest.raises(ConfigurationError) as caught:
        Idempotency(app)
    assert len(caught.value.mistakes) == 3
    for part in ("IDEMPOTENCY_TTL", "IDEMPOTENCY_CACHE_TYPE", "IDEMPOTENCY_LEESE", "did you mean IDEMPOTENCY_LEASE?"):
        assert part in str(caught.value)


# Upstash


@pytest.mark.parametrize(
    ("url", "token", "redis_url"),
    [
        ("https://eu1-x.upstash.io", "tok", "rediss://default:tok@eu1-x.upstash.io:6379"),
        ("https://eu1-x.upstash.io/", "tok", "rediss://default:tok@eu1-x.upstash.io:6379"),
        (" https://EU1-X.upstash.io\n", " tok\n", "rediss://default:tok@eu1-x.upstash.io:6379"),
        ("https://h:6390", "tok", "rediss://default:tok@h:6390"),
        ("http://localhost:8079", "tok", "redis://default:tok@localhost:8079"),
        ("http://[::1]:8079", "tok", "redis://default:tok@[::1]:8079"),
        ("https://[2001:db8::1]", "tok", "rediss://default:tok@[2001:db8::1]:6379"),
        ("https://h", "a/b+c=:@?#%", "rediss://default:a%2Fb%2Bc%3D%3A%40%3F%23%25@h:6379"),
        ("https://h", "AX~-._9", "rediss://default:AX~-._9@h:6379"),
        ("https://h", "t ö", "rediss://default:t%20%C3%B6@h:6379"),
    ],
)
def test_upstashs_rest_address_and_token_are_a_redis_url(url: str, token: str, redis_url: str) -> None:
    environ = {"UPSTASH_REDIS_REST_URL": url, "UPSTASH_REDIS_REST_TOKEN": token}
    assert environment_url(environ) == (redis_url, [])


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40))
@settings(deadline=None, max_examples=200)
def test_any_token_arrives_as_it_was(token: str) -> None:
    meant = token.strip()
    url, wrong = environment_url({"UPSTASH_REDIS_REST_URL": "https://h", "UPSTASH_REDIS_REST_TOKEN": token})
    if not meant:
        assert (url, len(wrong)) == (None, 1)
        return
    parts = urlsplit(url or "")
    assert (unquote(parts.password or ""), parts.username, parts.hostname, parts.port) == (meant, "default", "h", 6379)


@pytest.mark.parametrize(
    "environ",
    [
        {"UPSTASH_REDIS_REST_URL": "https://h"},
        {"UPSTASH_REDIS_REST_TOKEN": "t0k3n"},
        {"UPSTASH_REDIS_REST_URL": "https://h", "UPSTASH_REDIS_REST_TOKEN": " "},
        {"UPSTASH_REDIS_REST_URL": "", "UPSTASH_REDIS_REST_TOKEN": "t0k3n"},
        {"UPSTASH_REDIS_REST_URL": "https://h", "REDIS_URL": "redis://env"},
        {"UPSTASH_REDIS_REST_TOKEN": "t0k3n", "REDIS_URL": "redis://env"},
    ],
)
def test_half_of_upstashs_two_variables_is_a_mistake_even_beside_another_address(environ: dict[str, str]) -> None:
    """Falling back to memory or to another Redis would split the record keepers in silence."""
    url, (message,) = environment_url(environ)
    assert url is None
    assert "UPSTASH_REDIS_REST_URL" in message
    assert "UPSTASH_REDIS_REST_TOKEN" in message
    assert "t0k3n" not in message
    assert wrong_with({}, environ) == [message]


@pytest.mark.parametrize(
    "url",
    [
        "eu1.upstash.io",
        "redis://h",
        "rediss://default:s3cret@h:6379",
        "https://",
        "https:///x",
        "https://h:port",
        "https://h:99999",
        "https://[::1",
        "https://u:s3cret@h",
        "https://s3cret@h",
        "://",
        "x",
    ],
)
def test_an_upstash_address_of_another_kind_is_refused_without_repeating_it(url: str) -> None:
    environ = {"UPSTASH_REDIS_REST_URL": url, "UPSTASH_REDIS_REST_TOKEN": "t0k3n"}
    redis_url, (message,) = environment_url(environ)
    assert redis_url is None
    assert message.startswith("UPSTASH_REDIS_REST_URL must look like")
    assert "s3cret" not in message
    assert "t0k3n" not in message


@pytest.mark.parametrize(
    "config", [{"CACHE_TYPE": "SimpleCache"}, {"CACHE_REDIS_URL": "redis://h"}, {"CACHE_REDIS_HOST": "h"}]
)
def test_the_environment_is_not_even_read_where_a_setting_decides(config: dict[str, Any]) -> None:
    assert wrong_with(config, {"UPSTASH_REDIS_REST_TOKEN": "half", "REDIS_URL": "nonsense"}) == []


# Secrets

URLS = [
    "redis//:S3CRET@h",
    "http://:S3CRET@h",
    "S3CRET@h",
    "redis://:S3CRET/x@h",
    "redis://:S3CRET#x@h:6379/0",
    "redis://u:S3CRET?x@h",
    "redis://:S3CRET@[h",
]
LEAKS: list[tuple[dict[str, Any], dict[str, str]]] = [
    *(({"CACHE_REDIS_URL": url}, {}) for url in URLS),
    *(({}, {"REDIS_URL": url}) for url in URLS),
    *(({"CACHE_TYPE": url}, {}) for url in ("redis://:S3CRET@h", "rediss://default:S3CRET@h.example:6379")),
    *(({"CACHE_REDIS_ULR": url}, {}) for url in URLS),
    *(({}, {"UPSTASH_REDIS_REST_URL": url}) for url in URLS),
    *(({}, {"UPSTASH_REDIS_REST_URL": url, "UPSTASH_REDIS_REST_TOKEN": "S3CRET"}) for url in URLS),
    ({}, {"UPSTASH_REDIS_REST_TOKEN": "S3CRET"}),
    ({"CACHE_OPTIONS": "password=S3CRET"}, {}),
    ({"CACHE_OPTIONS": ["S3CRET"]}, {}),
    ({"CACHE_REDIS_PASSWORD": "S3CRET", "CACHE_REDIS_PORT": "x"}, {}),
    ({"CACHE_REDIS_PASSWROD": "S3CRET"}, {}),
    ({"REDIS_PASSWORD": "S3CRET"}, {}),
]


@pytest.mark.parametrize(("config", "environ"), LEAKS)
def test_no_message_repeats_a_password_or_a_token(
    config: dict[str, Any], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistakes that people make with a secret in the value, and a start-up message that ends in everybody's log."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    app = Flask("shop")
    app.config.update({f"IDEMPOTENCY_{key}": value for key, value in config.items()})
    with pytest.raises(ConfigurationError) as caught:
        Idempotency(app)
    assert caught.value.mistakes
    assert "S3CRET" not in str(caught.value)
