"""Connections over TLS: what is dear about them is made once, and what is renewed on disk is read again."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_idempotent.core.store import StoreError
from flask_idempotent.stores import tls
from flask_idempotent.stores.redis import RedisStore

from ..servers.standalone import RedisProcess
from ..servers.tls import Tls
from .making import KEY, at_once
from .topologies import store_of

pytestmark = pytest.mark.redis


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[ssl.SSLContext]:
    """All that are made with the authorities of the system."""
    made: list[ssl.SSLContext] = []
    make = ssl.create_default_context
    monkeypatch.setattr(ssl, "create_default_context", lambda: (made.append(make()), made[-1])[1])
    return made


@pytest.fixture
def connect(tls_server: RedisProcess) -> Iterator[Callable[..., RedisStore]]:
    stores: list[RedisStore] = []

    def connect(server: RedisProcess = tls_server, **options: str) -> RedisStore:
        assert server.tls is not None
        trust = {"ssl_ca_certs": server.tls.ca, **options}
        stores.append(store_of({"CACHE_REDIS_URL": server.url, "CACHE_OPTIONS": trust}))
        return stores[-1]

    yield connect
    for store in stores:
        store.close()


def test_connections_share_their_context(
    connect: Callable[..., RedisStore], contexts: list[ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect()
    store.get(KEY)
    at_once([lambda: store.get(KEY)] * 20)
    assert store.nodes.connects.number > 1
    assert len(contexts) == 1
    monkeypatch.setattr(tls, "SHARED_SECONDS", 0.0)
    other = connect()
    other.get(KEY)
    other.nodes.close()
    other.get(KEY)
    assert len(contexts) == 3


def test_a_certificate_that_is_renewed_on_disk_is_shown_in_time(
    connect: Callable[..., RedisStore], new_tls: Callable[..., RedisProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = new_tls(clients="yes").start()
    assert server.tls is not None
    shown, strangers = server.tls.client_certificate, Tls.make(server.directory / "stranger").client_certificate
    files = {name: server.directory / name for name in shown}

    def put(certificate: dict[str, str]) -> None:
        for name, path in certificate.items():
            files[name].write_bytes(Path(path).read_bytes())

    put(strangers)
    monkeypatch.setattr(tls, "SHARED_SECONDS", 0.0)
    store = connect(server, **{name: str(path) for name, path in files.items()})
    with pytest.raises(StoreError):
        store.get(KEY)
    put(shown)
    assert store.get(KEY) is None
