"""Every way to reach a Redis, through Flask-Caching's settings and through a Cache that is lent, as an app has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from flask import Flask
from flask_caching import Cache
from werkzeug.test import TestResponse

from flask_idempotent import Idempotency, idempotent

from ..servers.cluster import SLOTS, Cluster
from ..servers.ports import Port
from ..servers.process import until
from ..servers.sentinel import MASTER, SentinelProcess, SentinelSet
from ..servers.standalone import RedisProcess
from ..servers.tls import Tls
from .topologies import FEWEST_RIGHTS, cluster_settings, sentinel_settings

pytestmark = pytest.mark.redis

SECRET: Final = "s3cr/t@:"
WRONG: Final = "wr0ng"


class TlsSentinel:
    """A master and a sentinel that speak TLS to their clients and to each other."""

    def __init__(self, directory: Path) -> None:
        self.tls = Tls.make(directory / "tls")
        self.master = RedisProcess(_made(directory / "master"), tls=self.tls)
        self._sentinel = SentinelProcess(_made(directory / "sentinel"), self.master, 1, None)
        self._held = Port()
        files = {"cert-file": "server.pem", "key-file": "server.key", "ca-cert-file": "ca.pem"}
        lines = [f"tls-port {self._held.number}", "tls-replication yes", "tls-auth-clients no"]
        lines += [f'tls-{name} "{self.tls.directory / file}"' for name, file in files.items()]
        config = directory / "sentinel" / "sentinel.conf"
        config.write_text(config.read_text() + "\n".join(lines) + "\n")

    def start(self) -> None:
        self.master.start()
        self._sentinel.launch()
        self._sentinel.await_ready()
        until(lambda: self._sentinel.master()["flags"] == "master", "a master that is up")

    def stop(self) -> None:
        self._sentinel.stop()
        self.master.stop()

    @property
    def settings(self) -> dict[str, Any]:
        trust = {"ssl": True, "ssl_ca_certs": self.tls.ca}
        trust |= {f"sentinel_{name}": value for name, value in trust.items()}
        return {"CACHE_REDIS_SENTINELS": [("localhost", self._held.number)], "CACHE_OPTIONS": trust}


class TlsCluster:
    """A Cluster of one master, over TLS."""

    def __init__(self, directory: Path) -> None:
        self._tls = Tls.make(directory / "tls")
        options = ("--cluster-enabled", "yes", "--tls-cluster", "yes")
        self.node = RedisProcess(_made(directory / "node"), *options, tls=self._tls, bus=True)

    def start(self) -> None:
        self.node.start()
        with self.node.client() as client:
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
            until(lambda: client.cluster("INFO")["cluster_state"] == "ok", "a cluster that serves")

    def stop(self) -> None:
        self.node.stop()

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "CACHE_REDIS_CLUSTER": f"localhost:{self.node.port}",
            "CACHE_OPTIONS": {"ssl": True, "ssl_ca_certs": self._tls.ca},
        }


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory


def _tls(directory: Path, **settings: Any) -> RedisProcess:
    return RedisProcess(directory, tls=Tls.make(directory / "tls", settings.pop("clients", "no")), **settings)


def _trust(server: RedisProcess, **more: Any) -> dict[str, Any]:
    assert server.tls is not None
    return {"ssl_ca_certs": server.tls.ca, **more}


@dataclass(frozen=True)
class Way:
    """One way to reach a Redis.

    :param make: its servers, not yet started, in a directory.
    :param settings: Flask-Caching's, by their own names.
    :param environ: instead, or besides.
    :param wrong: settings that make a password of it a wrong one.
    """

    make: Callable[[Path], Any]
    settings: Callable[[Any], dict[str, Any]] = lambda server: {}
    environ: Callable[[Any], dict[str, str]] = lambda server: {}
    wrong: dict[str, Callable[[Any], dict[str, Any]]] = field(default_factory=dict)


def _by_host(server: RedisProcess, password: str = SECRET) -> dict[str, Any]:
    return {
        "CACHE_TYPE": "RedisCache",
        "CACHE_REDIS_HOST": "127.0.0.1",
        "CACHE_REDIS_PORT": server.port,
        "CACHE_REDIS_PASSWORD": password,
        "CACHE_REDIS_DB": 3,
    }


WAYS: Final = {
    "a URL": Way(
        lambda home: RedisProcess(home, password=SECRET),
        lambda server: {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.url},
        wrong={"of the URL": lambda server: {"CACHE_REDIS_URL": f"redis://:{WRONG}@127.0.0.1:{server.port}"}},
    ),
    "host, port, password and database": Way(
        lambda home: RedisProcess(home, password=SECRET),
        _by_host,
        wrong={"of the setting": lambda server: _by_host(server, WRONG)},
    ),
    "a unix socket": Way(
        lambda home: RedisProcess(home, unix_socket=True, password=SECRET),
        lambda server: {
            "CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.unix_url, "CACHE_OPTIONS": {"password": SECRET},
        },
        wrong={"of the options": lambda server: {"CACHE_OPTIONS": {"password": WRONG}}},
    ),
    "a user of few rights": Way(
        lambda home: RedisProcess(home, password="adm1n", user=FEWEST_RIGHTS),
        lambda server: {"CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.user_url},
        wrong={"of the user": lambda server: {"CACHE_REDIS_URL": f"redis://worker:{WRONG}@127.0.0.1:{server.port}"}},
    ),
    "a user named in the options": Way(
        lambda home: RedisProcess(home, password="adm1n", user=FEWEST_RIGHTS),
        lambda server: {
            "CACHE_TYPE": "RedisCache", "CACHE_REDIS_HOST": "127.0.0.1", "CACHE_REDIS_PORT": server.port,
            "CACHE_REDIS_PASSWORD": FEWEST_RIGHTS.password, "CACHE_OPTIONS": {"username": FEWEST_RIGHTS.name},
        },
    ),
    "TLS": Way(
        lambda home: _tls(home, password=SECRET),
        lambda server: {
            "CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.url, "CACHE_OPTIONS": _trust(server),
        },
    ),
    "TLS with a client's certificate": Way(
        lambda home: _tls(home, clients="yes"),
        lambda server: {
            "CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": server.url,
            "CACHE_OPTIONS": _trust(server, **server.tls.client_certificate),
        },
    ),
    "TLS by host": Way(
        lambda home: _tls(home, password=SECRET),
        lambda server: {**_by_host(server), "CACHE_OPTIONS": _trust(server, ssl=True)},
    ),
    "Upstash": Way(
        lambda home: _tls(home, password=SECRET),
        lambda server: {"CACHE_OPTIONS": _trust(server)},
        lambda server: {
            "UPSTASH_REDIS_REST_URL": f"https://localhost:{server.port}", "UPSTASH_REDIS_REST_TOKEN": SECRET,
        },
    ),
    "Upstash's stand-in": Way(
        lambda home: RedisProcess(home, password=SECRET),
        environ=lambda server: {
            "UPSTASH_REDIS_REST_URL": f"http://localhost:{server.port}", "UPSTASH_REDIS_REST_TOKEN": SECRET,
        },
    ),
    "Sentinel": Way(
        lambda home: SentinelSet(home, replicas=1, sentinels=1, password=SECRET, sentinel_password="s3ntinel"),
        lambda servers: {"CACHE_TYPE": "RedisSentinelCache", **sentinel_settings(servers)},
        wrong={
            "of the servers": lambda servers: {"CACHE_REDIS_PASSWORD": WRONG},
            "of the sentinels": lambda servers: {"CACHE_REDIS_SENTINEL_PASSWORD": WRONG},
            "that the sentinels want": lambda servers: {"CACHE_REDIS_SENTINEL_PASSWORD": None},
        },
    ),
    "Sentinel over TLS": Way(
        TlsSentinel,
        lambda servers: {
            "CACHE_TYPE": "RedisSentinelCache", "CACHE_REDIS_SENTINEL_MASTER": MASTER, **servers.settings
        },
    ),
    "Cluster": Way(
        lambda home: Cluster(home, password=SECRET),
        lambda servers: {
            "CACHE_TYPE": "RedisClusterCache", "CACHE_REDIS_PASSWORD": SECRET, **cluster_settings(servers)
        },
        wrong={"of the servers": lambda servers: {"CACHE_REDIS_PASSWORD": WRONG}},
    ),
    "Cluster by URL": Way(
        lambda home: Cluster(home, masters=3, password=SECRET),
        lambda servers: {"CACHE_TYPE": "RedisClusterCache", "CACHE_REDIS_URL": servers.nodes[0].url},
    ),
    "Cluster over TLS": Way(TlsCluster, lambda servers: {"CACHE_TYPE": "RedisClusterCache", **servers.settings}),
}  # fmt: skip


class Never:
    """In the place of a client that must not be used."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the client for reading is used: {name}")


Make = Callable[..., Flask]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes apps of one name, with a guarded view, on Redis alone; their connections are closed in the end."""
    apps: list[Flask] = []
    hosts: list[Any] = []

    def make(settings: dict[str, Any], *, lent: bool = False) -> Flask:
        app = Flask("shop")
        app.config.update(
            IDEMPOTENCY_LOCAL_TIER=None, IDEMPOTENCY_ON_OUTAGE="reject", IDEMPOTENCY_STORE_TIMEOUT=2,
            IDEMPOTENCY_LEASE=1,  # a claim of the time when Redis came back may be refused after it was applied
        )  # fmt: skip
        if lent:
            cache = Cache(app, config={"CACHE_KEY_PREFIX": "host:", **settings})
            hosts.append(app.extensions["cache"][cache])
            write = hosts[-1]._write_client
            hosts[-1]._read_client = Never()
            Idempotency(app, cache=cache)
            assert hosts[-1]._write_client is write
        else:
            app.config.update({f"IDEMPOTENCY_{name}": value for name, value in settings.items()})
            Idempotency(app)
        app.post("/")(idempotent(lambda: ("done", 201)))
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.extensions["idempotency"].close(app)
    for host in hosts:
        host._write_client.close()


def post(app: Flask) -> TestResponse:
    return app.test_client().post("/", headers={"Idempotency-Key": "k"})


def succeeds(app: Flask, *, replay: bool) -> None:
    """A request gets through, in its own time: a server that has just started may say that it loads."""

    def answered() -> TestResponse | None:
        answer = post(app)
        return answer if answer.status_code == 201 else None

    assert until(answered, "an answer").headers.get("Idempotent-Replayed") == ("true" if replay else None)


@pytest.mark.parametrize("name", WAYS)
def test_an_app_starts_while_its_redis_is_down_heals_and_shares_its_records_with_one_that_lends(
    name: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = WAYS[name]
    servers = way.make(tmp_path)
    for variable, value in way.environ(servers).items():
        monkeypatch.setenv(variable, value)
    try:
        app = make(way.settings(servers))
        down = post(app)
        assert (down.status_code, down.json["code"], "Retry-After" in down.headers) == (503, "store-unavailable", True)
        servers.start()
        succeeds(app, replay=False)
        succeeds(app, replay=True)
        assert app.extensions["idempotency"].health(app)["stats"]["isRedisAvailable"]
        if not way.environ(servers):
            succeeds(make(way.settings(servers), lent=True), replay=True)
        for what, wrong in way.wrong.items():
            refused = make({**way.settings(servers), **wrong(servers)})
            assert post(refused).status_code == 503
            report = refused.extensions["idempotency"].state_of(refused).store.report()
            assert report.refused, f"a wrong password {what} is no outage: {report.outage}"
            assert WRONG not in (report.outage or "")
    finally:
        servers.stop()


@pytest.mark.parametrize("certificate", ["none", "another authority's"])
def test_who_shows_no_certificate_of_the_authority_is_not_let_in(certificate: str, make: Make, tmp_path: Path) -> None:
    server = _tls(_made(tmp_path / "server"), clients="yes").start()
    stranger = Tls.make(tmp_path / "stranger")
    shown = stranger.client_certificate if certificate != "none" else {}
    try:
        app = make({"CACHE_REDIS_URL": server.url, "CACHE_OPTIONS": _trust(server, **shown)})
        assert post(app).status_code == 503
        with server.client() as client:
            assert client.dbsize() == 0
    finally:
        server.stop()
