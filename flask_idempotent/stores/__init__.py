"""Where records live. :func:`open_store` turns a Flask-Caching backend into a store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from flask import Flask
from flask_caching import Cache
from flask_caching.backends.base import BaseCache
from flask_caching.backends.simplecache import SimpleCache

from ..config import ConfigurationError, Settings
from ..core.digest import combine
from ..core.guard import Outcome
from ..core.store import Store
from .absent import NoTier
from .local import LocalTier
from .memory import MemoryStore, RecordCache
from .source import THRESHOLD, TYPES, kind, refusal

__all__ = ["lent_backend", "open_store", "own_backend"]

log = logging.getLogger("flask_idempotent")

_RECORD_CACHE: Final = f"{RecordCache.__module__}.{RecordCache.__qualname__}"
_CLUSTER_CACHE: Final = f"{__name__}.addresses.LazyClusterCache"


def lent_backend(app: Flask, cache: Cache) -> BaseCache:
    """The backend behind a host's Cache on this app, looked up once: Cache.cache follows whichever app is current.

    :raises ConfigurationError: the Cache is not set up on the app, or its type cannot keep records.
    """
    backend: BaseCache | None = app.extensions.get("cache", {}).get(cache)
    if backend is None:
        raise ConfigurationError(
            ["cache= is not set up on this app; call cache.init_app(app) before idempotency.init_app(app)"]
        )
    names = [base.__name__ for base in type(backend).__mro__ if issubclass(base, BaseCache)]
    for name in names:
        if kind(name) in TYPES:
            if kind(name) != "simple" and not backend.key_prefix:  # type: ignore[attr-defined]
                raise ConfigurationError(
                    ["cache= has an empty CACHE_KEY_PREFIX: its clear() would wipe the records; give it a prefix"]
                )
            return backend
        if kind(name) != "base" and (why := refusal(name)) and "not known" not in why:
            raise ConfigurationError([f"cache= {why}"])
    raise ConfigurationError([f"cache= {refusal(names[0])}"])


def own_backend(app: Flask, cache_settings: Mapping[str, Any]) -> BaseCache:
    """A backend of our own, made by Flask-Caching from its own settings. Opens no connection.

    :param cache_settings: every CACHE_* key, from :func:`flask_idempotent.stores.source.read_source`.
    :raises ConfigurationError: Flask-Caching or the Redis client refuses the settings.
    """
    settings = dict(cache_settings)
    if settings["CACHE_TYPE"] == "SimpleCache":
        settings["CACHE_TYPE"] = _RECORD_CACHE
    elif settings["CACHE_TYPE"] == "RedisClusterCache":
        settings["CACHE_TYPE"] = _CLUSTER_CACHE  # Flask-Caching's own connects in its constructor
    elif settings["CACHE_REDIS_URL"] and settings["CACHE_REDIS_PASSWORD"]:
        # With a URL Flask-Caching drops the password; redis-py takes it unless the URL has one.
        settings["CACHE_OPTIONS"] = {"password": settings["CACHE_REDIS_PASSWORD"], **(settings["CACHE_OPTIONS"] or {})}
    cache = Cache(with_jinja2_ext=False, config=settings)
    try:
        cache.init_app(app)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigurationError([f"the store cannot be set up: {error}"]) from error
    backend: BaseCache = app.extensions["cache"][cache]
    return backend


def open_store(
    backend: BaseCache,
    settings: Settings,
    threshold: int = THRESHOLD,
    notify: Callable[[Outcome, str], None] = lambda _outcome, _key: None,
) -> Store:
    """The store over a Flask-Caching backend.

    A lent backend gives its type and its connection settings; the records live in a backend and over connections of
    our own, so that the host's ``clear()``, evictions and timeouts never touch them.

    :param backend: a SimpleCache, or one of the Redis caches.
    :param settings: of the app.
    :param threshold: how many records the memory of a process holds.
    :param notify: called when Redis is lost, when it is back, and when a request ran on two hosts.
    :raises ConfigurationError: the file of the shared tier cannot be used.
    """
    if isinstance(backend, SimpleCache):
        if settings.local_tier == "shared":
            return _shared_tier(settings, "alone")
        _tell_unused(settings)
        return MemoryStore(backend if isinstance(backend, RecordCache) else RecordCache(threshold))
    from .addresses import nodes_of
    from .redis import RedisStore
    from .tiered import TieredStore

    nodes = nodes_of(backend, settings.store_timeout)
    local: LocalTier
    if settings.local_tier in (None, "memory"):
        _tell_unused(settings)
    if settings.local_tier is None:
        local = NoTier()
    elif settings.local_tier == "memory":
        local = MemoryStore(RecordCache(threshold))
    else:
        local = _shared_tier(settings, nodes.name)
    alone = settings.local_tier is None
    return TieredStore(local, RedisStore(nodes, alone=alone, min_replicas=settings.min_replicas), notify)


def _tell_unused(settings: Settings) -> None:
    """Say that the shared tier is not used where its file was named: somebody may think that it is."""
    if settings.shared_path is not None:
        log.warning('idempotency: IDEMPOTENCY_SHARED_PATH is not used without IDEMPOTENCY_LOCAL_TIER = "shared"')


def _shared_tier(settings: Settings, beside: str) -> LocalTier:
    """The host's tier, in a file of its own for each Redis that it stands before."""
    from .shared import SharedStore, check_path, default_path

    if settings.shared_path is not None:
        check_path(settings.shared_path)
        return SharedStore(settings.shared_path)
    name = combine("shared tier 1", settings.key_prefix.encode(), beside.encode()).hex()[:24]
    return SharedStore(default_path().with_name(f"{name}.sqlite3"))
