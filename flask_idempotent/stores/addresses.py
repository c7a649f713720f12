"""From a Flask-Caching backend to the servers it names, with connections and time limits of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from flask_caching.backends.rediscache import RedisClusterCache
from redis import RedisCluster
from redis.backoff import NoBackoff
from redis.connection import Connection, ConnectionPool, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel

from .cluster import ClusterNodes
from .nodes import Nodes, OneServer, SentinelNodes
from .pool import Place
from .sentinels import Sentinels
from .tls import sharing_context

POOL_SIZE: Final = 32
PATIENCE: Final = 3.0  # seconds
TIMEOUT: Final = 0.25  # seconds; a server that forks for a snapshot or shares a busy machine stalls for 0.1 and more
TIMEOUT_TLS: Final = 1.0
_UNSET: Final = ConnectionPool().max_connections  # what redis-py puts where no limit is given

# What a lent or a configured client may pass on to ours; the rest (timeouts, retries, caches, notification handlers) is
# for this package to decide.
_INHERITED: Final = frozenset(
    "host port db username password credential_provider path client_name socket_keepalive socket_keepalive_options"
    " socket_type ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_data ssl_ca_path ssl_check_hostname"
    " ssl_password ssl_validate_ocsp ssl_validate_ocsp_stapled ssl_ocsp_context ssl_ocsp_expected_cert"
    " ssl_min_version ssl_ciphers ssl_include_verify_flags ssl_exclude_verify_flags".split()
)


class LazyClusterCache(RedisClusterCache):
    """Flask-Caching's Cluster backend without its connection: the app starts while its cluster is down.

    It holds what Flask-Caching would have handed to redis-py; nothing is cached through it.
    """

    def __init__(self, cluster: str = "", password: str = "", redis_url: str = "", **options: Any) -> None:
        self.key_prefix = options.pop("key_prefix", "")
        options.pop("default_timeout", None)
        given = parse_url(redis_url) if redis_url else {}  # type: ignore[no-untyped-call]
        place = [(given.pop("host", "localhost"), given.pop("port", 6379))]
        self.startup: list[Place] = place if redis_url else [_split(node) for node in cluster.split(",")]
        self.settings = {**given, **({"password": password} if password else {}), **options}


def _split(node: str) -> Place:
    host, colon, port = node.strip().rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"{node.strip()!r} is no address of a cluster's server; use HOST:PORT,HOST:PORT")
    return host.strip("[]"), int(port)


def nodes_of(backend: Any, timeout: float | None) -> Nodes:
    """The servers behind a backend. Connects to nobody.

    RESP2 keeps the replies to what was asked; a command that timed out is not repeated by the client: the scripts are
    idempotent, and the caller knows what an outage means.

    :param backend: a RedisCache, RedisSentinelCache or RedisClusterCache, lent or our own.
    :param timeout: seconds for a connection, and for a reply; None for the default.
    """
    if isinstance(backend, LazyClusterCache):
        return _cluster(backend.startup, backend.settings, timeout)
    return nodes_behind(backend._write_client, timeout)


def nodes_behind(client: Any, timeout: float | None) -> Nodes:
    """The servers that a client of redis-py's talks to; see :func:`nodes_of`."""
    if isinstance(client, RedisCluster):
        manager = client.nodes_manager
        startup = [(node.host, int(node.port)) for node in manager.startup_nodes.values()]
        return _cluster(startup, manager.connection_kwargs, timeout)
    pool = client.connection_pool
    given, encrypted = pool.connection_kwargs, issubclass(pool.connection_class, SSLConnection)
    common = (_settings(given, timeout, encrypted), *_limits(pool.max_connections))
    if hasattr(pool, "sentinel_manager"):
        sentinels = _sentinels(pool.sentinel_manager, pool.service_name, timeout, encrypted)
        return SentinelNodes(sentinels, _ours(pool.connection_class), *common)
    return OneServer(_ours(pool.connection_class), *common)


def _cluster(startup: list[Place], given: Mapping[str, Any], timeout: float | None) -> ClusterNodes:
    encrypted = bool(given.get("ssl")) or issubclass(given.get("connection_class", Connection), SSLConnection)
    settings = _settings({name: value for name, value in given.items() if name != "db"}, timeout, encrypted)
    limits = _limits(given.get("max_connections"))
    return ClusterNodes(startup, _ours(SSLConnection if encrypted else Connection), settings, *limits)


def _sentinels(lent: Sentinel, service: str, timeout: float | None, encrypted: bool) -> Sentinels:
    """Connections of our own to the sentinels, with the credentials and TLS settings of the lent ones."""

    def connect(pool: Any) -> Callable[[], Any]:
        cls, settings = _ours(pool.connection_class), _settings(pool.connection_kwargs, timeout, encrypted)
        return lambda: cls(**settings)

    return Sentinels([connect(sentinel.connection_pool) for sentinel in lent.sentinels], service)


def _ours(connection_class: type) -> type:
    """The class of our connections: below whatever a lent client puts on top of redis-py's own."""
    if issubclass(connection_class, SSLConnection):
        return sharing_context()
    for known in (UnixDomainSocketConnection, Connection):
        if issubclass(connection_class, known):
            return known
    return connection_class


def _limits(max_connections: int | None) -> tuple[int, float]:
    """Connections per server, and the seconds to wait for one; redis-py's own defaults count as not set."""
    given = max_connections not in (None, _UNSET)
    return (max(int(max_connections or 0), 1) if given else POOL_SIZE), PATIENCE


def _settings(given: Mapping[str, Any], timeout: float | None, encrypted: bool) -> dict[str, Any]:
    limit = timeout or (TIMEOUT_TLS if encrypted else TIMEOUT)
    return {
        **{name: value for name, value in given.items() if name in _INHERITED},
        "socket_timeout": limit,
        "socket_connect_timeout": limit,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
    }
