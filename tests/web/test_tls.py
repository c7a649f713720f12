"""Redis over TLS, as Upstash and its like speak it: certificates made here, a real server that takes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from flask_caching import Cache

from flask_idempotent import Idempotency, idempotent

from ..servers.standalone import RedisProcess, User

pytestmark = pytest.mark.redis


@pytest.fixture
def server(new_tls: Callable[..., RedisProcess]) -> RedisProcess:
    """A server with a user of its own for the app, whose password wants quoting."""
    return new_tls(user=User("alice", "p@ss/w:rd", ["~idempotency:*", "&*", "+@all"])).start()


@pytest.fixture
def guarded_app() -> Iterator[Callable[..., Flask]]:
    """Makes apps with one guarded view, and closes them."""
    extension = Idempotency()
    apps: list[Flask] = []

    def make(cache: Cache | None = None, app: Flask | None = None, **config: Any) -> Flask:
        apps.append(app or Flask("tls"))
        apps[-1].config |= config
        extension.init_app(apps[-1], cache=cache)
        apps[-1].post("/")(idempotent(lambda: ("done", 201)))
        return apps[-1]

    yield make
    for app in apps:
        extension.close(app)


def assert_once(app: Flask) -> None:
    client = app.test_client()
    first, again = (client.post("/", headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert (first.status_code, again.headers.get("Idempotent-Replayed")) == (201, "true")
    assert app.extensions["idempotency"].stats(app)["isRedisAvailable"] is True


def test_a_certificate_of_the_named_authority_is_trusted(
    server: RedisProcess, guarded_app: Callable[..., Flask]
) -> None:
    options = {"ssl_ca_certs": server.tls.ca}
    assert_once(guarded_app(IDEMPOTENCY_CACHE_REDIS_URL=server.user_url, IDEMPOTENCY_CACHE_OPTIONS=options))


def test_the_settings_of_a_lent_client_are_enough(server: RedisProcess, guarded_app: Callable[..., Flask]) -> None:
    app = Flask("tls")
    cache = Cache(
        app,
        config={
            "CACHE_TYPE": "RedisCache",
            "CACHE_REDIS_URL": server.url,
            "CACHE_OPTIONS": {"ssl_ca_certs": server.tls.ca},
        },
    )
    assert_once(guarded_app(cache, app))


def test_a_strangers_certificate_is_refused(server: RedisProcess, guarded_app: Callable[..., Flask]) -> None:
    app = guarded_app(IDEMPOTENCY_CACHE_REDIS_URL=server.url, IDEMPOTENCY_ON_OUTAGE="reject")
    response = app.test_client().post("/", headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json["code"]) == (503, "store-unavailable")
    with server.client() as client:
        assert client.dbsize() == 0
