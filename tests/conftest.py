from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe

from .redis_process import RedisProcess


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
