"""A TLS server takes TLS only, shows its own certificate, and asks for its clients' as the fixture says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .standalone import RedisProcess
from .tls import Tls

pytestmark = pytest.mark.redis

NewTls = Callable[..., RedisProcess]


def reaches(server: RedisProcess, **settings: Any) -> bool:
    """Whether a client of no certificate but those in the settings is served."""
    usual = {"port": server.port, "ssl": True, "ssl_ca_certs": server.tls.ca, "retry": Retry(NoBackoff(), 0)}
    with redis.Redis(**usual | settings) as client:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False


def test_a_plain_connection_is_refused(tls_server: RedisProcess) -> None:
    assert not reaches(tls_server, ssl=False, ssl_ca_certs=None)
    with redis.Redis.from_url(tls_server.url, ssl_ca_certs=tls_server.tls.ca) as client:
        assert client.ping()
        assert client.dbsize() == 0


def test_the_certificate_is_for_this_host_and_of_this_authority(tls_server: RedisProcess, tmp_path: Path) -> None:
    assert reaches(tls_server)
    assert reaches(tls_server, host="localhost")
    assert not reaches(tls_server, ssl_ca_certs=None)
    assert not reaches(tls_server, ssl_ca_certs=Tls.make(tmp_path).ca)
    assert not reaches(tls_server, host="127.0.0.2", ssl_check_hostname=True)


@pytest.mark.parametrize(
    ("clients", "without", "with_strangers"), [("no", True, True), ("optional", True, False), ("yes", False, False)]
)
def test_client_certificates_are_wanted_as_said(
    new_tls: NewTls, tmp_path: Path, clients: str, without: bool, with_strangers: bool
) -> None:
    server = new_tls(clients=clients).start()
    assert reaches(server, **server.tls.client_certificate)
    assert reaches(server) == without
    assert reaches(server, **Tls.make(tmp_path / "strangers").client_certificate) == with_strangers


def test_a_password_is_wanted_over_tls_too(new_tls: NewTls) -> None:
    server = new_tls(password="p@ss").start()
    with redis.Redis.from_url(server.url, ssl_ca_certs=server.tls.ca) as client:
        assert client.ping()
    assert not reaches(server)
