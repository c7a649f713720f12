"""From a Flask app's settings, or a Cache that it lends, to a store that works."""

from __future__ import annotations

import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from flask import Flask, render_template_string
from flask_caching import Cache
from flask_caching.backends import FileSystemCache, MemcachedCache, NullCache, RedisCache, SimpleCache
from flask_caching.backends.base import BaseCache

from flask_idempotent import Idempotency
from flask_idempotent.config import ConfigurationError, Settings
from flask_idempotent.core.store import Claimed, Found, OnOutage, Store, StoreFull
from flask_idempotent.stores import addresses, lent_backend, open_store, own_backend
from flask_idempotent.stores.absent import NoTier
from flask_idempotent.stores.memory import MemoryStore, RecordCache
from flask_idempotent.stores.nodes import Nodes
from flask_idempotent.stores.shared import SharedStore
from flask_idempotent.stores.source import THRESHOLD, read_source
from flask_idempotent.stores.tiered import TieredStore

from ..servers.ports import free_port
from ..servers.standalone import RedisProcess
from .conftest import hang_up
from .making import KEY, OTHER, TTL, alive, claim_of, eventually, payload_of
from .working import key_of

ALONE = Settings(local_tier=None, on_outage=OnOutage.REJECT)
Opened = Callable[..., Store]


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Nodes]]:
    """The servers of the stores that were opened; their connections are closed in the end."""
    made: list[Nodes] = []
    nodes_of = addresses.nodes_of

    def remembered(backend: Any, timeout: float | None) -> Nodes:
        made.append(nodes_of(backend, timeout))
        return made[-1]

    monkeypatch.setattr(addresses, "nodes_of", remembered)
    yield made
    hang_up(made)


@pytest.fixture
def opened(servers: list[Nodes]) -> Opened:
    """Open the store that an app's settings name."""

    def opened(
        config: dict[str, Any], environ: dict[str, str] | None = None, settings: Settings | None = None
    ) -> Store:
        app = Flask(__name__)
        app.config.update(config)
        source, mistakes = read_source(app.config, environ or {})
        if mistakes:
            raise ConfigurationError(mistakes)
        return open_store(own_backend(app, source), settings or Settings())

    return opened


def lend(app: Flask, **config: Any) -> Cache:
    """A host's own Cache."""
    cache = Cache(config={"CACHE_NO_NULL_WARNING": True, **config})
    cache.init_app(app)
    return cache


def works(store: Store) -> None:
    """A store that takes a claim and replays its outcome."""
    key = f"idempotency:{{{id(store)}}}"
    assert store.claim(claim_of(key=key)) == Claimed(1)
    assert store.complete(claim_of(key=key), payload_of(claim_of()), TTL)
    assert isinstance(store.claim(claim_of(OTHER, key)), Found)


# --- By settings ----------------------------------------------------------------------------------------------------


def test_without_settings_the_store_is_the_memory_of_the_process(opened: Opened) -> None:
    store = opened({})
    assert isinstance(store, MemoryStore)
    works(store)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("settings", "tier"),
    [(Settings(), SharedStore), (Settings(local_tier="memory"), MemoryStore), (ALONE, NoTier)],
    ids=["host", "process", "alone"],
)
@pytest.mark.parametrize("by", ["url", "host", "environment", "options"])
def test_with_redis_there_are_two_tiers_unless_one_is_switched_off(
    opened: Opened, redis_server: RedisProcess, settings: Settings, tier: type, by: str
) -> None:
    config: dict[str, Any] = {
        "url": {"REDIS_URL": redis_server.url},
        "host": {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis_server.port},
        "options": {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": redis_server.port, "OPTIONS": {"client_name": "mine"}},
        "environment": {},
    }[by]
    environ = {"REDIS_URL": redis_server.url} if by == "environment" else {}
    store = opened({f"IDEMPOTENCY_CACHE_{key}": value for key, value in config.items()}, environ, settings)
    assert isinstance(store, TieredStore)
    assert type(store._local) is tier
    works(store)
    assert store.report().redis_available
    with redis_server.client() as server:
        assert server.dbsize() == 1
        assert [each for each in server.client_list() if each["name"] == "mine"] or by != "options"


@pytest.mark.redis
@pytest.mark.parametrize(
    "config", [{"REDIS_URL": "redis://127.0.0.1:{port}/5"}, {"REDIS_URL": "redis://127.0.0.1:{port}", "REDIS_DB": 5}]
)
def test_the_database_is_the_one_that_was_named(
    opened: Opened, redis_server: RedisProcess, config: dict[str, Any]
) -> None:
    url = config["REDIS_URL"].format(port=redis_server.port)
    works(opened({f"IDEMPOTENCY_CACHE_{key}": value for key, value in (config | {"REDIS_URL": url}).items()}))
    with redis.Redis(port=redis_server.port, db=5, protocol=2) as server:
        assert server.dbsize() == 1


@pytest.mark.parametrize("size", [3, None])
def test_the_threshold_is_the_limit_of_the_memory_store(opened: Opened, size: int | None) -> None:
    store = opened({} if size is None else {"IDEMPOTENCY_CACHE_THRESHOLD": size})
    for number in range(size or 1000):
        store.claim(claim_of(key=key_of(number)))
    if size:
        with pytest.raises(StoreFull):
            store.claim(claim_of())


@pytest.mark.redis
@pytest.mark.usefixtures("servers")
def test_the_threshold_is_the_limit_of_the_local_tier_too(redis_server: RedisProcess) -> None:
    """The error of a full tier tells to raise IDEMPOTENCY_CACHE_THRESHOLD; so it must be what counts."""
    app = Flask(__name__)
    app.config.update(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url, IDEMPOTENCY_CACHE_THRESHOLD=3)
    app.config["IDEMPOTENCY_LOCAL_TIER"] = "memory"
    store = Idempotency(app).state_of(app).store
    for number in range(3):
        store.claim(claim_of(key=key_of(number)))
    with pytest.raises(StoreFull, match="limit of 3"):
        store.claim(claim_of())


@pytest.mark.redis
@pytest.mark.parametrize(
    "config",
    [
        {"REDIS_URL": "redis://127.0.0.1:{port}/0", "REDIS_PASSWORD": "p@ss/word"},
        {"REDIS_URL": "redis://:p%40ss%2Fword@127.0.0.1:{port}/0"},
        {"REDIS_URL": "redis://default:p%40ss%2Fword@127.0.0.1:{port}/0", "REDIS_PASSWORD": "not this one"},
        {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": "{port}", "REDIS_PASSWORD": "p@ss/word"},
        {"REDIS_URL": "redis://127.0.0.1:{port}/0", "OPTIONS": {"password": "p@ss/word"}},
        {"REDIS_URL": "redis://127.0.0.1:{port}/0", "REDIS_PASSWORD": "p@ss/word", "OPTIONS": {"client_name": "x"}},
    ],
)
def test_a_password_reaches_redis_by_every_way(
    opened: Opened, new_redis: Callable[..., RedisProcess], config: dict[str, Any]
) -> None:
    server = new_redis().start()
    with server.client() as client:
        client.config_set("requirepass", "p@ss/word")
    values = {
        name: value.format(port=server.port) if isinstance(value, str) else value for name, value in config.items()
    }
    if "REDIS_PORT" in values:
        values["REDIS_PORT"] = server.port
    works(opened({f"IDEMPOTENCY_CACHE_{name}": value for name, value in values.items()}))


@pytest.mark.redis
def test_upstash_by_its_environment(opened: Opened, new_redis: Callable[..., RedisProcess]) -> None:
    server, token = new_redis().start(), "A/b+c=:@#?%"
    with server.client() as client:
        client.config_set("requirepass", token)
    rest = f"http://127.0.0.1:{server.port}"
    works(opened({}, {"UPSTASH_REDIS_REST_URL": rest, "UPSTASH_REDIS_REST_TOKEN": token}))


@pytest.mark.redis
def test_redis_behind_a_unix_socket(opened: Opened, new_redis: Callable[..., RedisProcess]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # the path of a socket may not be long
        socket = f"{directory}/redis.sock"
        new_redis("--unixsocket", socket).start()
        store = opened({"IDEMPOTENCY_CACHE_REDIS_URL": f"unix://{socket}?db=2"})
        works(store)
        assert store.report().redis_available


@pytest.mark.redis
def test_redis_over_tls_has_a_longer_budget_and_is_verified(
    opened: Opened, new_redis: Callable[..., RedisProcess], servers: list[Nodes], tmp_path: Path
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    new_redis(
        "--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
        "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no",
    ).start()  # fmt: skip
    url = f"rediss://localhost:{port}"
    store = opened({"IDEMPOTENCY_CACHE_REDIS_URL": f"{url}?ssl_ca_certs={certificate}"}, settings=ALONE)
    works(store)
    assert servers[-1]._settings["socket_timeout"] == 1.0
    assert opened({"IDEMPOTENCY_CACHE_REDIS_URL": url}, settings=ALONE).report().outage, "nobody vouches for it"


@pytest.mark.redis
@pytest.mark.parametrize(("given", "budget"), [(None, 0.25), (0.7, 0.7)])
def test_the_time_budget_is_ours_and_not_that_of_the_options(
    opened: Opened, redis_server: RedisProcess, servers: list[Nodes], given: float | None, budget: float
) -> None:
    options = {"socket_timeout": 60, "socket_connect_timeout": 60, "decode_responses": True, "max_connections": 1}
    opened(
        {"IDEMPOTENCY_CACHE_REDIS_URL": redis_server.url, "IDEMPOTENCY_CACHE_OPTIONS": options},
        settings=Settings(store_timeout=given),
    )
    settings = servers[-1]._settings
    assert (settings["socket_timeout"], settings["socket_connect_timeout"]) == (budget, budget)
    assert settings.get("decode_responses", False) is False


@pytest.mark.redis
@pytest.mark.parametrize("by", ["url", "host"])
def test_an_app_starts_while_its_redis_is_down(opened: Opened, new_redis: Callable[..., RedisProcess], by: str) -> None:
    server = new_redis()
    config: dict[str, Any] = {"IDEMPOTENCY_CACHE_REDIS_URL": server.url}
    if by == "host":
        config = {"IDEMPOTENCY_CACHE_REDIS_HOST": "127.0.0.1", "IDEMPOTENCY_CACHE_REDIS_PORT": server.port}
    store = opened(config)
    assert alive("probe") == []
    works(store)
    assert store.report().outage
    server.start()
    eventually(lambda: store.report().redis_available and not store.report().waiting)
    with server.client() as client:
        assert client.dbsize() == 1


@pytest.mark.parametrize(
    "config",
    [
        {"REDIS_URL": "redis://localhost:port/0"},
        {"REDIS_URL": "redis://localhost/0?socket_timeout=soon"},
        {"REDIS_HOST": "localhost", "OPTIONS": {"nonsense": True}},
        {"ARGS": ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], "REDIS_HOST": "x"},
    ],
)
def test_settings_that_the_client_refuses_are_a_configuration_error(opened: Opened, config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be (set up|read)"):
        opened({f"IDEMPOTENCY_CACHE_{key}": value for key, value in config.items()})


@pytest.mark.parametrize("password", ["sec/ret", "sec#ret", "sec?ret"])
def test_a_password_that_was_not_quoted_is_not_told(password: str) -> None:
    """Left as it is, the rest of the password reads as a port, and the parser quotes what it cannot read."""
    app = Flask(__name__)
    app.config["IDEMPOTENCY_CACHE_REDIS_URL"] = f"redis://:{password}@localhost:6379/0"
    with pytest.raises(ConfigurationError) as caught:
        Idempotency(app)
    assert "sec" not in "".join(traceback.format_exception(caught.value))


# --- The host's own cache --------------------------------------------------------------------------------------------

HOSTS = {
    "CACHE_TYPE": "RedisCache", "CACHE_REDIS_URL": "redis://nowhere.invalid", "CACHE_THRESHOLD": 1,
    "CACHE_DEFAULT_TIMEOUT": 1, "CACHE_KEY_PREFIX": "host:", "CACHE_OPTIONS": {"db": 3}, "CACHE_ARGS": ["x"],
    "CACHE_REDIS_PASSWORD": "host", "CACHE_REDIS_DB": 7, "CACHE_IGNORE_ERRORS": True,
}  # fmt: skip


def test_the_hosts_settings_do_not_leak_into_the_memory_store(opened: Opened) -> None:
    store = opened(HOSTS)
    assert isinstance(store, MemoryStore)
    works(store)
    assert [store.claim(claim_of(key=key_of(number))) for number in range(10)] == [Claimed(1)] * 10


@pytest.mark.redis
def test_the_hosts_settings_do_not_leak_into_redis(
    opened: Opened, redis_server: RedisProcess, servers: list[Nodes]
) -> None:
    works(opened({**HOSTS, "IDEMPOTENCY_CACHE_REDIS_URL": redis_server.url}, settings=ALONE))
    settings = servers[-1]._settings
    assert (settings.get("password"), settings.get("db")) == (None, 0)
    with redis_server.client() as server:
        (key,) = server.keys()
        assert key.startswith(b"idempotency:{")


def test_ours_leaves_the_hosts_cache_as_it_was() -> None:
    app = Flask(__name__)
    host = lend(app, CACHE_TYPE="SimpleCache")
    backend = app.extensions["cache"][host]
    own_backend(app, read_source({}, {})[0])
    with app.test_request_context():
        assert host.cache is backend
        template = "{% cache 60, 'fragment' %}{{ number }}{% endcache %}"
        assert render_template_string(template, number=1) == render_template_string(template, number=2) == "1"
        assert len(backend._cache) == 1


# --- A Cache that is lent --------------------------------------------------------------------------------------------


def test_a_lent_simple_cache_gives_its_type_and_nothing_more() -> None:
    app = Flask(__name__)
    host = lend(app, CACHE_TYPE="SimpleCache", CACHE_THRESHOLD=2)
    store = open_store(lent_backend(app, host), Settings())
    assert isinstance(store, MemoryStore)
    for number in range(50):
        assert store.claim(claim_of(key=key_of(number))) == Claimed(1)
    with app.app_context():
        for number in range(50):
            host.set(f"host {number}", number)
        host.clear()
        assert all(store.get(key_of(number)) for number in range(50))
        assert host.get(KEY) is None
    assert store.report().in_memory_size == 50
    assert THRESHOLD > 1000


@pytest.mark.redis
@pytest.mark.parametrize("settings", [Settings(), ALONE], ids=["tiers", "alone"])
@pytest.mark.parametrize(
    "config",
    [{"CACHE_REDIS_URL": "redis://127.0.0.1:{port}/4"}, {"CACHE_REDIS_HOST": "127.0.0.1", "CACHE_REDIS_DB": 4}],
)
def test_a_lent_redis_cache_gives_its_server_and_its_database(
    redis_server: RedisProcess, servers: list[Nodes], config: dict[str, Any], settings: Settings
) -> None:
    app = Flask(__name__)
    values = {
        key: value.format(port=redis_server.port) if key.endswith("URL") else value for key, value in config.items()
    }
    options = {"socket_timeout": 60, "decode_responses": False, "client_name": "host"}
    host = lend(
        app,
        CACHE_TYPE="RedisCache",
        CACHE_REDIS_PORT=redis_server.port,
        CACHE_KEY_PREFIX="host:",
        CACHE_OPTIONS=options,
        **values,
    )
    store = open_store(lent_backend(app, host), settings)
    works(store)
    assert servers[-1]._settings["socket_timeout"] == 0.25
    with redis.Redis(port=redis_server.port, db=4, protocol=2) as server, app.app_context():
        host.set("view", "cached")
        assert sorted(key.partition(b":")[0] for key in server.scan_iter()) == [b"host", b"idempotency"]
        host.clear()
        assert [key.partition(b":")[0] for key in server.scan_iter()] == [b"idempotency"]
    _close(app, host)


def _close(app: Flask, host: Cache) -> None:
    for client in (app.extensions["cache"][host]._write_client, app.extensions["cache"][host]._read_client):
        client.connection_pool.disconnect()


@pytest.mark.redis
def test_a_host_that_wipes_the_database_is_refused_or_does_no_harm(
    redis_server: RedisProcess, servers: list[Nodes]
) -> None:
    """With an empty prefix, ``Cache.clear()`` is FLUSHDB."""
    app = Flask(__name__)
    host = lend(app, CACHE_TYPE="RedisCache", CACHE_REDIS_URL=redis_server.url, CACHE_KEY_PREFIX="")
    try:
        store = open_store(lent_backend(app, host), ALONE)
    except ConfigurationError as error:
        assert "CACHE_KEY_PREFIX" in str(error)  # noqa: PT017
        return
    store.claim(claim_of())
    with app.app_context():
        host.clear()
    kept = store.get(KEY)
    _close(app, host)
    assert kept is not None


def test_a_lent_cache_is_that_of_the_app_and_not_of_the_one_that_came_last() -> None:
    first, last = Flask("first"), Flask("last")
    host = lend(first, CACHE_TYPE="SimpleCache")
    host.init_app(last, config={"CACHE_TYPE": "NullCache", "CACHE_NO_NULL_WARNING": True})
    assert isinstance(lent_backend(first, host), SimpleCache)
    with pytest.raises(ConfigurationError, match="stores nothing"):
        lent_backend(last, host)


@pytest.mark.parametrize("other", [False, True])
def test_a_lent_cache_must_be_set_up_first(other: bool) -> None:
    app = Flask(__name__)
    if other:
        lend(app, CACHE_TYPE="SimpleCache")
    with pytest.raises(ConfigurationError, match=r"cache\.init_app\(app\)"):
        lent_backend(app, Cache())


class Mine(RedisCache):
    """A host's own refinement of a backend that works."""


class Unheard(BaseCache):
    """A host's own backend."""


@pytest.mark.redis
def test_a_refined_redis_cache_is_a_redis_cache(redis_server: RedisProcess, servers: list[Nodes]) -> None:
    app = Flask(__name__)
    host = lend(app, CACHE_TYPE=f"{__name__}.Mine", CACHE_REDIS_URL=redis_server.url)
    works(open_store(lent_backend(app, host), Settings()))


@pytest.mark.parametrize(
    ("config", "kind", "why"),
    [
        ({}, NullCache, "stores nothing"),
        ({"CACHE_TYPE": "FileSystemCache", "CACHE_DIR": "here"}, FileSystemCache, "two processes"),
        ({"CACHE_TYPE": "MemcachedCache", "CACHE_MEMCACHED_SERVERS": object()}, MemcachedCache, "evicts live records"),
    ],
    ids=["null", "filesystem", "memcached"],
)
def test_a_lent_cache_of_another_type_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], kind: type[BaseCache], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    app = Flask(__name__)
    host = lend(app, **config)
    assert isinstance(app.extensions["cache"][host], kind)
    with pytest.raises(ConfigurationError, match=f"(?s)cache=.*{why}.*SimpleCache.*RedisCache"):
        lent_backend(app, host)


def test_a_lent_cache_that_nobody_knows_is_refused() -> None:
    app = Flask(__name__)
    host = Cache()
    app.extensions["cache"] = {host: Unheard()}
    with pytest.raises(ConfigurationError, match="cannot keep records"):
        lent_backend(app, host)


def test_our_own_memory_backend_is_used_as_it_is() -> None:
    backend = RecordCache(2)
    store = open_store(backend, Settings())
    store.claim(claim_of())
    assert len(backend) == 1


NAMED = Path("/dev/shm/shop/records.sqlite")
UNUSED = "IDEMPOTENCY_SHARED_PATH is not used"


@pytest.mark.parametrize(
    ("config", "local_tier", "told"),
    [
        ({}, "auto", True),
        ({}, "memory", True),
        ({}, "shared", False),
        ({"IDEMPOTENCY_CACHE_REDIS_URL": "redis://127.0.0.1:1"}, "memory", True),
        ({"IDEMPOTENCY_CACHE_REDIS_URL": "redis://127.0.0.1:1"}, None, True),
        ({"IDEMPOTENCY_CACHE_REDIS_URL": "redis://127.0.0.1:1"}, "auto", False),
    ],
)
def test_a_file_that_is_named_for_nothing_is_told(
    opened: Opened, caplog: pytest.LogCaptureFixture, config: dict[str, Any], local_tier: str | None, told: bool
) -> None:
    opened(config, settings=Settings(local_tier=local_tier, on_outage=OnOutage.REJECT, shared_path=NAMED))
    assert (UNUSED in caplog.text) == told
    caplog.clear()
    opened(config, settings=Settings(local_tier=local_tier, on_outage=OnOutage.REJECT))
    assert UNUSED not in caplog.text
