"""The ways to reach a Redis, each from an app's settings to two stores, as two workers have them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
from flask import Flask

from flask_idempotent.config import Settings
from flask_idempotent.core.store import OnOutage
from flask_idempotent.stores import open_store, own_backend
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.source import read_source
from flask_idempotent.stores.tiered import TieredStore

from ..servers.cluster import Cluster
from ..servers.sentinel import MASTER, SentinelSet
from ..servers.standalone import RedisProcess, User

ALONE = Settings(local_tier=None, on_outage=OnOutage.REJECT, store_timeout=5.0)
COMMANDS = "evalsha eval get set setrange append pttl pexpire del time publish subscribe unsubscribe ping info"
FEWEST_RIGHTS = User(
    "worker",
    "s3cr/t@:",
    ["resetchannels", "~idempotency:*", "&idempotency:*", *(f"+{name}" for name in COMMANDS.split())],
)


@dataclass(frozen=True)
class Topology:
    """Two stores on the same servers, and a client that may do everything."""

    first: RedisStore
    second: RedisStore
    client: redis.Redis

    def close(self) -> None:
        self.first.close()
        self.second.close()
        self.client.close()


def store_of(config: dict[str, Any], settings: Settings = ALONE) -> RedisStore:
    """What an app with these settings has of a store, behind its local tier."""
    app = Flask(__name__)
    app.config.update({f"IDEMPOTENCY_{name}": value for name, value in config.items()})
    source, mistakes = read_source(app.config, {})
    assert not mistakes
    store = open_store(own_backend(app, source), settings)
    assert isinstance(store, TieredStore)
    return store._shared


def _of_server(server: RedisProcess) -> dict[str, Any]:
    return {"CACHE_REDIS_URL": server.url}


def _of_unix(server: RedisProcess) -> dict[str, Any]:
    return {"CACHE_REDIS_URL": server.unix_url, "CACHE_REDIS_PASSWORD": server.password}


def _of_user(server: RedisProcess) -> dict[str, Any]:
    return {"CACHE_REDIS_URL": server.user_url}


def _of_tls(server: RedisProcess) -> dict[str, Any]:
    assert server.tls is not None
    return {"CACHE_REDIS_URL": server.url, "CACHE_OPTIONS": {"ssl_ca_certs": server.tls.ca}}


def sentinel_settings(servers: SentinelSet) -> dict[str, Any]:
    given = {
        "CACHE_REDIS_SENTINELS": servers.addresses,
        "CACHE_REDIS_SENTINEL_MASTER": MASTER,
        "CACHE_REDIS_PASSWORD": servers.password,
        "CACHE_REDIS_SENTINEL_PASSWORD": servers.sentinel_password,
    }
    return {name: value for name, value in given.items() if value is not None}


def cluster_settings(cluster: Cluster) -> dict[str, Any]:
    return {"CACHE_REDIS_CLUSTER": ",".join(f"{host}:{port}" for host, port in cluster.addresses[:2])}


# The name of each, the fixture of its servers, and the settings of an app that uses them.
TOPOLOGIES: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "redis": ("_session_redis", _of_server),
    "unix": ("_session_locked", _of_unix),
    "user": ("_session_locked", _of_user),
    "tls": ("_session_tls", _of_tls),
    "sentinel": ("_session_sentinel", sentinel_settings),
    "cluster": ("_session_cluster", cluster_settings),
}
