"""Redis over TLS, as Upstash and its like speak it: certificates made here, a real server that takes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from flask import Flask
from flask_caching import Cache

from flask_idempotent import Idempotency, idempotent

from ..redis_process import RedisProcess, free_port

pytestmark = pytest.mark.redis


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_port(authority: trustme.CA, tmp_path: Path, new_redis: Callable[..., RedisProcess]) -> int:
    """A server with a password and a certificate, and a plain port only for the fixture that watches it start."""
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    chain, key, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(trusted))
    port = free_port()
    new_redis(
        "--tls-port", str(port), "--tls-cert-file", str(chain), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(trusted), "--tls-auth-clients", "no",
        "--user", "alice", "on", ">p@ss/w:rd", "~idempotency:*", "&*", "+@all",
    ).start()  # fmt: skip
    return port


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
    tls_port: int, tmp_path: Path, guarded_app: Callable[..., Flask]
) -> None:
    url = f"rediss://alice:p%40ss%2Fw%3Ard@localhost:{tls_port}"
    options = {"ssl_ca_certs": str(tmp_path / "ca.pem")}
    assert_once(guarded_app(IDEMPOTENCY_CACHE_REDIS_URL=url, IDEMPOTENCY_CACHE_OPTIONS=options))


def test_the_settings_of_a_lent_client_are_enough(
    tls_port: int, tmp_path: Path, guarded_app: Callable[..., Flask]
) -> None:
    app = Flask("tls")
    cache = Cache(
        app,
        config={
            "CACHE_TYPE": "RedisCache",
            "CACHE_REDIS_URL": f"rediss://localhost:{tls_port}",
            "CACHE_OPTIONS": {"ssl_ca_certs": str(tmp_path / "ca.pem")},
        },
    )
    assert_once(guarded_app(cache, app))


def test_a_strangers_certificate_is_refused(tls_port: int, guarded_app: Callable[..., Flask]) -> None:
    app = guarded_app(IDEMPOTENCY_CACHE_REDIS_URL=f"rediss://localhost:{tls_port}", IDEMPOTENCY_ON_OUTAGE="reject")
    response = app.test_client().post("/", headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json["code"]) == (503, "store-unavailable")
    with redis.Redis(port=tls_port, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False, protocol=2) as server:
        assert server.dbsize() == 0
