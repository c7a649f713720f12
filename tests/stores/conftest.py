"""One contract, five places for records: memory, a file, Redis, and the tiers as seen by one worker and by two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from flask_idempotent.core.store import Store
from flask_idempotent.stores import breaker, wakeups
from flask_idempotent.stores.absent import NoTier
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.local import LocalStore
from flask_idempotent.stores.memory import MemoryStore, RecordCache
from flask_idempotent.stores.nodes import Nodes
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.scripts import SCRIPTS
from flask_idempotent.stores.shared import SharedStore
from flask_idempotent.stores.tiered import TieredStore

from ..servers.link import Link
from ..servers.standalone import RedisProcess
from .making import Clock, alive, eventually
from .topologies import FEWEST_RIGHTS, TOPOLOGIES, Topology, store_of

Connect = Callable[..., RedisStore]


@dataclass(frozen=True)
class Place:
    """Where records are kept in one test.

    :param store: as the worker under test sees it.
    :param elsewhere: as another worker sees the same records; in memory there is only one.
    """

    store: Store
    elsewhere: Store
    local: LocalStore | None = None
    client: redis.Redis | None = None

    def left(self, key: str) -> list[int]:
        """How long a key is still kept, in milliseconds, in each tier that has it."""
        taken = self.local.take(key) if self.local else None
        here = [] if taken is None else [taken[1]]
        there = [left for left in [self.client.pttl(key)] if left != -2] if self.client else []
        return here + there


@dataclass(frozen=True)
class Worker:
    """One process of a deployment: a tiered store whose way to Redis the test holds in its hand."""

    store: TieredStore
    link: Link
    local: LocalStore = field(repr=False)
    shared: RedisStore = field(repr=False)


def memory(
    threshold: int = 1000, clock: Callable[[], int] | None = None, of: type[MemoryStore] = MemoryStore
) -> MemoryStore:
    return of(RecordCache(threshold), clock)


@pytest.fixture(autouse=True)
def _no_probe_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that a test does not close looks for its Redis for ever."""
    made: list[TieredStore] = []
    init = TieredStore.__init__

    def remembered(store: TieredStore, *args: Any) -> None:
        init(store, *args)
        made.append(store)

    monkeypatch.setattr(TieredStore, "__init__", remembered)
    yield
    for store in made:
        store.close()
    if made:
        eventually(lambda: not alive("probe"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session", autouse=True)
def _short_ears() -> Iterator[None]:
    """The thread that listens for wake-ups goes soon after the last who waited: tests end sooner than workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wakeups, "IDLE_SECONDS", 0.1)
        yield


def hang_up(servers: list[Nodes]) -> None:
    """Close the connections of stores that are done with."""
    if servers:
        eventually(lambda: not alive("wakeups"))
    for nodes in servers:
        nodes.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Build Redis stores over clients of their own, and close their connections in the end."""
    made: list[Nodes] = []

    def connect(port: int, timeout: float = 5.0, *, of: type[RedisStore] = RedisStore, **lent: Any) -> RedisStore:
        made.append(nodes_behind(redis.Redis(port=port, **lent), timeout))
        return of(made[-1])

    yield connect
    hang_up(made)


@pytest.fixture(scope="session")
def _session_locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis with a password, a user of few rights, and a unix socket."""
    directory = tmp_path_factory.mktemp("locked")
    server = RedisProcess(directory, password="adm1n", user=FEWEST_RIGHTS, unix_socket=True)
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def _topologies(request: pytest.FixtureRequest, _short_ears: None) -> Iterator[Callable[[str], Topology]]:
    """The ways to reach a Redis, each made when it is first asked for."""
    made: dict[str, Topology] = {}

    def topology(name: str) -> Topology:
        if name not in made:
            fixture, settings = TOPOLOGIES[name]
            servers = request.getfixturevalue(fixture)
            config = settings(servers)
            made[name] = Topology(store_of(config), store_of(config), servers.client())
        return made[name]

    yield topology
    for each in made.values():
        each.close()


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Callable[..., SharedStore]]:
    """Makes stores over one file, each as another worker of the host would, and closes them in the end."""
    stores: list[SharedStore] = []

    def make(**options: Any) -> SharedStore:
        stores.append(SharedStore(tmp_path / "shared" / "records.sqlite", **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


# Redis alone behind a breaker; a worker with a tier of its own; two of these; two workers of one host.
TIERED = ("alone", "tiered", "two-workers", "host")
PLACES = ("memory", "shared", *(pytest.param(name, marks=pytest.mark.redis) for name in (*TOPOLOGIES, *TIERED)))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, _topologies: Callable[[str], Topology]) -> Iterator[Place]:
    """The places of the contract: ``store`` and ``elsewhere`` are two stores where two workers reach one place."""
    if request.param == "memory":
        local = memory()
        yield Place(local, local, local)
    elif request.param == "shared":
        make = request.getfixturevalue("shared")
        here = make()
        yield Place(here, make(), here)
    elif request.param in TOPOLOGIES:
        at = _topologies(request.param)
        at.client.flushall()
        yield Place(at.first, at.second, client=at.client)
    else:
        yield from _tiered(request, _topologies("redis"))


def _tiered(request: pytest.FixtureRequest, at: Topology) -> Iterator[Place]:
    at.client.flushall()
    make: Callable[[], Any] = {"alone": NoTier, "host": request.getfixturevalue("shared")}.get(request.param, memory)
    local = make()
    first, second = TieredStore(local, at.first), TieredStore(make(), at.second)
    known = local if isinstance(local, LocalStore) else None
    yield Place(first, first if request.param == "tiered" else second, known, at.client)


@pytest.fixture
def store(place: Place) -> Store:
    return place.store


@pytest.fixture
def elsewhere(place: Place) -> Store:
    return place.elsewhere


@pytest.fixture
def server(redis_server: RedisProcess) -> Iterator[redis.Redis]:
    """A plain client of the shared Redis, to look at what is really there. It knows our scripts already."""
    with redis_server.client() as client:
        for script in SCRIPTS:
            client.script_load(script.text)
        yield client


@pytest.fixture
def worker(
    redis_server: RedisProcess, server: redis.Redis, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Worker]]:
    """Start workers on one Redis, each with a link of its own. Their probes run at a test's pace."""
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(breaker, "LEFTOVER_SECONDS", 0.02)
    workers: list[Worker] = []

    def start(
        *,
        timeout: float = 2.0,
        threshold: int = 1000,
        of: type[RedisStore] = RedisStore,
        local_of: type[MemoryStore] = MemoryStore,
        local: LocalStore | None = None,
    ) -> Worker:
        link = Link(redis_server.port)
        local, shared = local or memory(threshold, of=local_of), connect(link.port, timeout, of=of)
        workers.append(Worker(TieredStore(local, shared), link, local, shared))
        return workers[-1]

    yield start
    server.config_set("maxmemory", 0)
    for each in workers:
        each.store.close()
    try:
        eventually(lambda: not alive("probe"))
    finally:
        for each in workers:
            each.link.close()
