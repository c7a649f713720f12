from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .redis_process import RedisProcess


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the developer's shell says about Redis or Stripe is not what the tests are about."""
    for name in (
        "REDIS_URL",
        "UPSTASH_REDIS_REST_URL",
        "UPSTASH_REDIS_REST_TOKEN",
        "STRIPE_API_KEY",
        "STRIPE_API_BASE",
        "STRIPE_WEBHOOK_SECRET",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def _session_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    server = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_server(_session_redis: RedisProcess) -> RedisProcess:
    """A running, empty Redis, shared by tests that do not stop it."""
    with _session_redis.client() as client:
        client.flushall()
    return _session_redis


@pytest.fixture
def new_redis(tmp_path: Path) -> Iterator[Callable[..., RedisProcess]]:
    """Makes servers of the test's own, not yet started, for tests that stop, freeze or restart them."""
    servers: list[RedisProcess] = []

    def make(*options: str, persistent: bool = False) -> RedisProcess:
        directory = tmp_path / f"redis-{len(servers)}"
        directory.mkdir()
        servers.append(RedisProcess(directory, *options, persistent=persistent))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
