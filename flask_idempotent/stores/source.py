"""Which store: IDEMPOTENCY_CACHE_* settings, then the environment, then SimpleCache; as Flask-Caching's settings."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

PREFIX: Final = "IDEMPOTENCY_"
THRESHOLD: Final = 100_000
WORKING: Final = (
    "SimpleCache (one process), or RedisCache, RedisSentinelCache or RedisClusterCache (any number of workers)"
)

# Flask-Caching starts from a copy of app.config, so each of its keys is set here: the host's CACHE_* stay the host's.
DEFAULTS: Final[dict[str, Any]] = {
    "CACHE_TYPE": "SimpleCache",
    "CACHE_DEFAULT_TIMEOUT": 600,
    "CACHE_IGNORE_ERRORS": False,
    "CACHE_THRESHOLD": THRESHOLD,
    "CACHE_KEY_PREFIX": "",
    "CACHE_ARGS": [],
    "CACHE_OPTIONS": None,
    "CACHE_NO_NULL_WARNING": True,
    "CACHE_SOURCE_CHECK": False,
    "CACHE_ENABLE_SIGNALS": False,
    "CACHE_SERIALIZER": None,
    "CACHE_HASH_METHOD": hashlib.sha256,
    "CACHE_FILE_HASH_METHOD": hashlib.sha256,
    "CACHE_DIR": None,
    "CACHE_MEMCACHED_SERVERS": None,
    "CACHE_REDIS_URL": None,
    "CACHE_REDIS_HOST": "localhost",
    "CACHE_REDIS_PORT": 6379,
    "CACHE_REDIS_DB": 0,
    "CACHE_REDIS_PASSWORD": None,
    "CACHE_REDIS_SENTINELS": None,
    "CACHE_REDIS_SENTINEL_MASTER": "mymaster",
    "CACHE_REDIS_SENTINEL_PASSWORD": None,
    "CACHE_REDIS_CLUSTER": None,
}
_ADDRESS: Final = ("CACHE_REDIS_URL", "CACHE_REDIS_HOST")
TYPES: Final = {
    "simple": "SimpleCache",
    "redis": "RedisCache",
    "redissentinel": "RedisSentinelCache",
    "rediscluster": "RedisClusterCache",
}
_SCHEMES: Final = ("redis://", "rediss://", "unix://")

WHY_NOT: Final = {
    "null": "it stores nothing and says yes to every claim",
    "filesystem": "two processes can claim one key in it",
    "memcached": "it evicts live records, and its values cannot be checked and set in one step",
    "saslmemcached": "it evicts live records, and its values cannot be checked and set in one step",
    "spreadsaslmemcached": "it evicts live records, and its values cannot be checked and set in one step",
}


def kind(cache_type: str) -> str:
    """``RedisCache``, ``redis`` and ``flask_caching.backends.RedisCache`` all read ``redis``."""
    return cache_type.rpartition(".")[2].lower().removesuffix("cache")


def refusal(cache_type: str) -> str | None:
    """Why records cannot live in a Flask-Caching backend of this type; None when they can."""
    name = kind(cache_type)
    if name in TYPES:
        return None
    return f"{cache_type!r} cannot keep records: {WHY_NOT.get(name, 'it is not known to be safe')}. Use {WORKING}."


def read_source(config: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Flask-Caching's settings for a backend of our own, and the mistakes found on the way.

    :param config: the app's config; only IDEMPOTENCY_CACHE_* counts, and None is as good as not given.
    :param environ: the process environment, for UPSTASH_REDIS_REST_URL with UPSTASH_REDIS_REST_TOKEN, and REDIS_URL.
    """
    given = {
        key[len(PREFIX) :]: value
        for key, value in config.items()
        if key.startswith(PREFIX + "CACHE_") and value is not None
    }
    mistakes = _misspelt(given)
    cache_type, origin = given.pop("CACHE_TYPE", None), f"{PREFIX}CACHE_REDIS_URL"
    if cache_type is None:
        cache_type = _implied_type(given)
    if wrong := _wrong_type(cache_type):
        cache_type, mistakes = "SimpleCache", [*mistakes, wrong]
    if (cache_type is None or kind(cache_type) == "redis") and not any(key in given for key in _ADDRESS):
        url, problems = environment_url(environ)
        mistakes += problems
        if url:
            origin = "REDIS_URL"
            cache_type, given = "RedisCache", {**given, "CACHE_REDIS_URL": url}
    settings = {**DEFAULTS, **given, "CACHE_TYPE": TYPES[kind(cache_type or "simple")]}
    return settings, mistakes + _impossible(settings, origin)


def _implied_type(given: Mapping[str, Any]) -> str | None:
    """The backend that the other settings speak of."""
    if "CACHE_REDIS_SENTINELS" in given:
        return "RedisSentinelCache"
    if "CACHE_REDIS_CLUSTER" in given:
        return "RedisClusterCache"
    return "RedisCache" if any(key.startswith("CACHE_REDIS_") for key in given) else None


def _wrong_type(cache_type: Any) -> str | None:
    key = f"{PREFIX}CACHE_TYPE"
    if cache_type is None:
        return None
    if not isinstance(cache_type, str):
        return f"{key} must be a name, not {cache_type!r}; use {WORKING}"
    if "://" in cache_type:  # with a password in it, maybe
        return f"{key} is the name of a backend; the URL belongs into {PREFIX}CACHE_REDIS_URL"
    why = refusal(cache_type)
    return f"{key} {why}" if why else None


def environment_url(environ: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The Redis URL that the environment names, and the mistakes in it.

    Upstash's REST token is also the password of its database, which speaks the Redis protocol over TLS on port 6379 of
    the same host (https://upstash.com/docs/redis/howto/connectclient).
    """
    name = "UPSTASH_REDIS_REST_URL"
    rest_url = environ.get(name, "").strip()
    token = environ.get("UPSTASH_REDIS_REST_TOKEN", "").strip()
    if not rest_url and not token:
        return environ.get("REDIS_URL", "").strip() or None, []
    if not rest_url or not token:
        return None, [f"{name} and UPSTASH_REDIS_REST_TOKEN go together: set both, or neither"]
    try:
        parts = urlsplit(rest_url)
        host, port = parts.hostname, parts.port or (6379 if parts.scheme == "https" else 80)
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.password:
        return None, [f"{name} must look like https://NAME.upstash.io"]
    scheme = "rediss" if parts.scheme == "https" else "redis"
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://default:{quote(token, safe='')}@{host}:{port}", []


def _misspelt(given: Mapping[str, Any]) -> list[str]:
    mistakes = []
    for key in given:
        if key not in DEFAULTS and kind(str(given.get("CACHE_TYPE", ""))) not in WHY_NOT:
            close = difflib.get_close_matches(key, DEFAULTS, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
            mistakes.append(f"{PREFIX}{key} is not a setting of SimpleCache or the Redis caches{hint}")
    return mistakes


def _wrong_url(url: Any, origin: str) -> str | None:
    """What is wrong with a Redis URL. The client's own error would quote the password."""
    if not isinstance(url, str) or not url.startswith(_SCHEMES):
        return f"{origin} must begin with redis://, rediss:// or unix://"
    try:
        parts = urlsplit(url)
        readable = parts.scheme == "unix" or (parts.hostname is not None and parts.port != 0)
    except ValueError:
        readable = False
    if readable:
        return None
    return (
        f"{origin} cannot be read; it must look like redis://:PASSWORD@HOST:PORT/DB, "
        "with the special characters of the password percent-encoded"
    )


def _impossible(settings: Mapping[str, Any], origin: str) -> list[str]:
    """Mistakes in the values themselves. Passwords are never repeated."""
    mistakes = []
    url, threshold, port = (settings[key] for key in ("CACHE_REDIS_URL", "CACHE_THRESHOLD", "CACHE_REDIS_PORT"))
    if url is not None and (wrong := _wrong_url(url, origin)):
        mistakes.append(wrong)
    if isinstance(threshold, bool) or not isinstance(threshold, int) or threshold < 1:
        mistakes.append(f"{PREFIX}CACHE_THRESHOLD must be a whole number above 0, not {threshold!r}")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536:
        mistakes.append(f"{PREFIX}CACHE_REDIS_PORT must be a port number, not {port!r}")
    mistakes += _impossible_places(settings)
    host = settings["CACHE_REDIS_HOST"]
    if not isinstance(host, str) or not host or set(host) & set("@/ "):
        mistakes.append(f"{PREFIX}CACHE_REDIS_HOST must be a host name alone; a URL goes into {PREFIX}CACHE_REDIS_URL")
    if not isinstance(settings["CACHE_OPTIONS"], dict | None):
        mistakes.append(f"{PREFIX}CACHE_OPTIONS must be a dict of redis-py settings")
    return mistakes


def _impossible_places(settings: Mapping[str, Any]) -> list[str]:
    """Mistakes in the addresses of sentinels and of a cluster's servers."""
    if settings["CACHE_TYPE"] == "RedisSentinelCache" and not _are_places(settings["CACHE_REDIS_SENTINELS"]):
        return [f"{PREFIX}CACHE_REDIS_SENTINELS must be a list of (host, port) pairs, such as [('10.0.0.1', 26379)]"]
    cluster = settings["CACHE_REDIS_CLUSTER"]
    if settings["CACHE_TYPE"] != "RedisClusterCache" or settings["CACHE_REDIS_URL"]:
        return []
    if isinstance(cluster, str) and all(_is_place(*node.strip().rpartition(":")[::2]) for node in cluster.split(",")):
        return []
    return [f"{PREFIX}CACHE_REDIS_CLUSTER must name the cluster's servers, such as '10.0.0.1:6379,10.0.0.2:6379'"]


def _are_places(sentinels: Any) -> bool:
    return (
        isinstance(sentinels, list | tuple)
        and len(sentinels) > 0
        and all(isinstance(place, list | tuple) and len(place) == 2 and _is_place(*place) for place in sentinels)
    )


def _is_place(host: Any, port: Any) -> bool:
    return isinstance(host, str) and bool(host) and str(port).isdigit() and 0 < int(port) < 65536
