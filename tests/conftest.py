from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
import stripe

from .servers.binaries import NAMES, SYSTEM
from .servers.cluster import Cluster
from .servers.sentinel import SentinelSet
from .servers.standalone import RedisProcess
from .servers.tls import Clients, Tls

Server = TypeVar("Server", RedisProcess, SentinelSet, Cluster)


@pytest.fixture(autouse=True)
def _no_tier_of_the_host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests, and other runs of them, have left in the host's shared memory is not theirs to read."""
    place = tmp_path_factory.getbasetemp() / "host" / "records.sqlite"
    monkeypatch.setattr("flask_idempotent.stores.shared.default_path", lambda: place)


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell says about Redis or Stripe is not what the tests are about."""
    for name in [name for name in os.environ if name.startswith("STRIPE_")] + [
        "REDIS_URL",
        "UPSTASH_REDIS_REST_URL",
        "UPSTASH_REDIS_REST_TOKEN",
    ]:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _only_test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test uses a key of Stripe's that is not a test key, nor asks Stripe itself for anything."""
    send = stripe.HTTPClient.request_with_retries

    def guarded(client: Any, method: str, url: str, headers: Mapping[str, str], *args: Any, **options: Any) -> Any:
        key = headers.get("Authorization", "").removeprefix("Bearer ")
        if not key.startswith(("sk_test_", "rk_test_")):
            pytest.fail(f"a test was about to use a key that is no test key: {key[:8]}…")
        if urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
            pytest.fail(f"a test was about to ask {urlsplit(url).hostname}")
        return send(client, method, url, headers, *args, **options)

    monkeypatch.setattr(stripe.HTTPClient, "request_with_retries", guarded)


def _serve(server: Server) -> Iterator[Server]:
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    yield from _serve(RedisProcess(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def _session_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    directory = tmp_path_factory.mktemp("tls")
    yield from _serve(RedisProcess(directory, tls=Tls.make(directory)))


@pytest.fixture(scope="session")
def _session_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSet]:
    yield from _serve(SentinelSet(tmp_path_factory.mktemp("sentinel")))


@pytest.fixture(scope="session")
def _session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    yield from _serve(Cluster(tmp_path_factory.mktemp("cluster")))


@pytest.fixture(scope="session")
def _session_versions(
    _session_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], RedisProcess]]:
    servers = {SYSTEM: _session_redis}

    def get(version: str) -> RedisProcess:
        if version not in servers:
            servers[version] = RedisProcess(tmp_path_factory.mktemp(version), version=version).start()
        return servers[version]

    yield get
    for server in servers.values():
        server.stop()


@pytest.fixture
def redis_server(_session_redis: RedisProcess) -> RedisProcess:
    """A running, empty Redis, shared by tests that do not stop it."""
    _session_redis.flush()
    return _session_redis


@pytest.fixture(params=NAMES)
def any_server(request: pytest.FixtureRequest, _session_versions: Callable[[str], RedisProcess]) -> RedisProcess:
    """A running, empty server of each version in turn, shared by tests that do not stop it."""
    server = _session_versions(request.param)
    server.flush()
    return server


@pytest.fixture
def tls_server(_session_tls: RedisProcess) -> RedisProcess:
    """A running, empty Redis that speaks TLS only, shared by tests that do not stop it."""
    _session_tls.flush()
    return _session_tls


@pytest.fixture
def sentinel_set(_session_sentinel: SentinelSet) -> SentinelSet:
    """A healthy, empty Sentinel set, shared by tests that do not break it."""
    _session_sentinel.flush()
    return _session_sentinel


@pytest.fixture
def cluster(_session_cluster: Cluster) -> Cluster:
    """A healthy, empty Cluster, shared by tests that neither break it nor move its slots."""
    _session_cluster.flush()
    return _session_cluster


@pytest.fixture
def _make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    servers: list[Any] = []

    def make(kind: type[Server], *options: str, **settings: Any) -> Server:
        directory = tmp_path / f"server-{len(servers)}"
        directory.mkdir()
        server = kind(directory, *options, **settings)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def new_redis(_make: Callable[..., Any]) -> Callable[..., RedisProcess]:
    """Makes servers of the test's own, not yet started, for tests that stop, freeze or restart them."""

    def make(*options: str, **settings: Any) -> RedisProcess:
        server: RedisProcess = _make(RedisProcess, *options, **settings)
        return server

    return make


@pytest.fixture
def new_tls(_make: Callable[..., Any], tmp_path: Path) -> Callable[..., RedisProcess]:
    """Makes servers that speak TLS only, not yet started, each with an authority of its own.

    ``clients`` says whether a client shows a certificate; the rest is as for ``new_redis``.
    """

    def make(*options: str, clients: Clients = "no", **settings: Any) -> RedisProcess:
        number = len(list(tmp_path.glob("tls-*")))
        tls = Tls.make(tmp_path / f"tls-{number}", clients)
        server: RedisProcess = _make(RedisProcess, *options, tls=tls, **settings)
        return server

    return make


@pytest.fixture
def new_sentinel(_make: Callable[..., Any]) -> Callable[..., SentinelSet]:
    """Makes Sentinel sets of the test's own, not yet started, for tests that break them."""

    def make(*options: str, **settings: Any) -> SentinelSet:
        sentinel_set: SentinelSet = _make(SentinelSet, *options, **settings)
        return sentinel_set

    return make


@pytest.fixture
def new_cluster(_make: Callable[..., Any]) -> Callable[..., Cluster]:
    """Makes Clusters of the test's own, not yet started, for tests that break them or move slots."""

    def make(*options: str, **settings: Any) -> Cluster:
        cluster: Cluster = _make(Cluster, *options, **settings)
        return cluster

    return make
