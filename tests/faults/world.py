"""What a campaign plays in: the servers, the network, the hosts with their workers, and the book of faults."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Final

from ..servers.link import Link
from ..servers.process import until
from ..servers.sentinel import MASTER, SentinelSet
from ..servers.standalone import RedisProcess
from .clock import Clock
from .evidence import Fault, Kind, Lines
from .host import Host

RECOVERY_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Site:
    """What there is in a world.

    :param hosts: how many, each with a file of its own for the local tier.
    :param workers: processes of each.
    :param threads: of each worker.
    :param redis: ``"persistent"``, ``"volatile"`` (empty after a restart) or ``"sentinel"``.
    :param link: whether the workers reach Redis by a network that can be cut.
    :param clocks: whether the clocks of Redis and of the workers can be moved.
    :param settings: of the extension, without their prefix.
    """

    hosts: int = 1
    workers: int = 3
    threads: int = 6
    redis: str = "persistent"
    link: bool = False
    clocks: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def shared_memory() -> Iterator[Path]:
    """A directory for local tiers, where they usually lie. What killed campaigns have left there is removed."""
    parent = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(gettempdir())
    for left in parent.glob("faults-[0-9]*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"faults-{os.getpid()}-", dir=parent) as directory:
        yield Path(directory)


class World:
    """Everything that runs in a campaign; ends with the context.

    :param directory: a new one, for what is left behind.
    :param pace: by what the length of faults is multiplied.
    """

    def __init__(self, site: Site, directory: Path, pace: float = 1.0) -> None:
        self.site, self.directory, self.pace = site, directory, pace
        self.ledger = directory / "ledger"
        self._end = ExitStack()
        self._made = 0

    def __enter__(self) -> World:
        with ExitStack() as end:
            self._book = Lines(self.directory / "faults")
            end.callback(self._book.close)
            self._memory = end.enter_context(shared_memory())
            self.redis_clock = self._clock("redis", end)
            self.worker_clock = self._clock("workers", end)
            self.redis, self.sentinel, self.link = self._servers(end)
            self.hosts: list[Host] = []
            self._end = end.pop_all()
        try:
            for number in range(self.site.hosts):
                self.hosts.append(self.new_host(f"host-{number}"))
        except BaseException:
            self._end.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()

    def _clock(self, name: str, end: ExitStack) -> Clock | None:
        if not self.site.clocks:
            return None
        clock = Clock(self._new_directory(f"clock-of-{name}"))
        end.callback(clock.close)
        return clock

    def _servers(self, end: ExitStack) -> tuple[RedisProcess | None, SentinelSet | None, Link | None]:
        if self.site.redis == "sentinel":
            sentinel = SentinelSet(self._new_directory("sentinel"), "--min-replicas-to-write", "1")
            end.callback(sentinel.stop)
            return None, sentinel.start(), None
        variables = self.redis_clock.variables if self.redis_clock else None
        persistent = self.site.redis == "persistent"
        redis = RedisProcess(self._new_directory("redis"), persistent=persistent, variables=variables)
        end.callback(redis.stop)
        redis.start()
        if not self.site.link:
            return redis, None, None
        link = Link(redis.port)
        end.callback(link.close)
        return redis, None, link

    def _new_directory(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path

    def new_host(self, name: str, *, shares_with: str = "", direct: bool = False, **settings: Any) -> Host:
        """Start a host.

        :param shares_with: the name of a host with which it shares the file of the local tier.
        :param direct: whether its way to Redis leaves out the network that can be cut.
        :param settings: of the extension, beside the site's.
        """
        self._made += 1
        home = self._new_directory(f"{self._made}-{name}")
        shared = {"SHARED_PATH": str(self._memory / f"tier-of-{shares_with or name}")}
        host = Host(
            home,
            name,
            {**self._redis_settings(direct), **shared, **self.site.settings, **settings},
            self.ledger,
            workers=self.site.workers,
            threads=self.site.threads,
            variables=self.worker_clock.variables if self.worker_clock else None,
        )
        self._end.callback(host.stop)
        return host.start()

    def _redis_settings(self, direct: bool) -> dict[str, Any]:
        if self.sentinel:
            return {"CACHE_REDIS_SENTINELS": self.sentinel.addresses, "CACHE_REDIS_SENTINEL_MASTER": MASTER}
        assert self.redis is not None
        port = self.link.port if self.link and not direct else self.redis.port
        return {"CACHE_REDIS_URL": f"redis://127.0.0.1:{port}/0"}

    @contextmanager
    def fault(self, kind: Kind, name: str, pid: int = 0) -> Iterator[None]:
        """Write down a fault, which lasts as long as the context."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._book.add(Fault(kind, name, begin, time.monotonic(), pid))

    def await_recovery(self) -> None:
        """Wait until every worker says that all is well."""
        for host in self.hosts:
            until(lambda host=host: _all_healthy(host), f"recovery of {host.name}", RECOVERY_SECONDS)


def _all_healthy(host: Host) -> bool:
    """Ask until every worker has answered; each connection meets another one."""
    workers = set(host.workers())
    for _ in range(20 * len(workers)):
        state = host.state()
        if state.get("status") != "healthy":
            return False
        workers.discard(state["pid"])
        if not workers:
            return True
    return False
