"""A Sentinel set for tests: a master, its replicas, and the sentinels that watch them and fail over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.sentinel import Sentinel

from .binaries import SYSTEM, binary
from .ports import Port
from .process import START_SECONDS, ServerProcess, until
from .standalone import RedisProcess

MASTER: Final = "mymaster"
DOWN_AFTER_MS: Final = 1000  # of silence, after which a server counts as down
FAILOVER_TIMEOUT_MS: Final = 1000  # twice this after an attempt that failed, the next is made
# How often sentinels look and talk, in milliseconds. The usual 10 s, 2 s and 1 s would make every set slow to start.
# Pings: well within DOWN_AFTER_MS, or a new connection counts as down before its first; but when a master is chosen, a
# replica's INFO may be five of them old, and it is renewed once a second.
PACE: Final = {"info-period": 200, "publish-period": 200, "ask-period": 200, "ping-period": 300}


class SentinelProcess(ServerProcess):
    """One sentinel.

    :param master: watched from the start; the replicas and the other sentinels are found by themselves.
    :param quorum: how many sentinels must agree that it is down.
    :param password: of this sentinel, and of all others.
    """

    def __init__(self, directory: Path, master: RedisProcess, quorum: int, password: str | None) -> None:
        self._held = Port()
        self.port, self.password = self._held.number, password
        lines = [
            f"port {self.port}", "bind 127.0.0.1", f'dir "{directory}"',
            f"sentinel monitor {MASTER} 127.0.0.1 {master.port} {quorum}",
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MS}",
            f"sentinel failover-timeout {MASTER} {FAILOVER_TIMEOUT_MS}",
        ]  # fmt: skip
        if master.password is not None:
            lines.append(f'sentinel auth-pass {MASTER} "{master.password}"')
        if password is not None:
            lines += [f'requirepass "{password}"', f'sentinel sentinel-pass "{password}"']
        config = directory / "sentinel.conf"
        config.write_text("\n".join(lines) + "\n")
        super().__init__(directory, [str(binary(SYSTEM)), str(config), "--sentinel"])

    def client(self, **settings: Any) -> redis.Redis:
        """A plain client of the sentinel itself."""
        return redis.Redis(port=self.port, password=self.password, protocol=2, socket_timeout=5, **settings)

    def answers(self) -> bool:
        try:
            with self.client() as client:
                for name, milliseconds in PACE.items():  # no setting of the file: the set keeps it until it stops
                    client.execute_command("SENTINEL", "DEBUG", name, milliseconds)
                return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def ask(self, command: str) -> Any:
        """A command about the set, raw: redis-py 7.0 cannot read these answers."""
        with self.client() as client:
            return client.execute_command("SENTINEL", command, MASTER)

    def master(self) -> dict[str, str]:
        """What this sentinel knows of the master: ``flags``, ``num-other-sentinels`` and so on."""
        return _fields(self.ask("MASTER"))

    def sees(self, replicas: int, sentinels: int) -> bool:
        """Whether all is well as far as this sentinel knows."""
        master, found = self.master(), [_fields(each) for each in self.ask("REPLICAS")]
        following = [each for each in found if each["flags"] == "slave" and each["master-link-status"] == "ok"]
        complete = len(found) == len(following) == replicas and int(master["num-other-sentinels"]) == sentinels - 1
        return complete and master["flags"] == "master"


class SentinelSet:
    """A master, replicas and sentinels.

    :param options: of every redis-server among them.
    :param password: of the servers.
    :param sentinel_password: of the sentinels.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        replicas: int = 2,
        sentinels: int = 3,
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.password, self.sentinel_password = password, sentinel_password
        first: RedisProcess | None = None
        self.servers: list[RedisProcess] = []
        for number in range(replicas + 1):
            home = _made(directory / f"server-{number}")
            self.servers.append(RedisProcess(home, *options, password=password, replica_of=first))
            first = self.servers[0]
        watched, quorum = self.servers[0], sentinels // 2 + 1
        self.sentinels = [
            SentinelProcess(_made(directory / f"sentinel-{number}"), watched, quorum, sentinel_password)
            for number in range(sentinels)
        ]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Of the sentinels, as a client is told them."""
        return [("127.0.0.1", sentinel.port) for sentinel in self.sentinels]

    def start(self) -> Self:
        """Start all; return when the set is healthy."""
        try:
            for server in self.servers:
                server.launch()
            for server in self.servers:
                server.await_ready()
            until(lambda: self._online(self.servers[0]) == len(self.servers) - 1, "replication")
            for sentinel in self.sentinels:
                sentinel.launch()
            for sentinel in self.sentinels:
                sentinel.await_ready()
            self.await_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill all."""
        for process in (*self.sentinels, *self.servers):
            process.stop()

    def await_healthy(self, within: float = START_SECONDS) -> None:
        """Wait until all sentinels agree on the master, and all other servers follow it."""
        until(self._healthy, "a healthy set", within)

    def _healthy(self) -> bool:
        agreed = len({self.master_address(sentinel) for sentinel in self.sentinels}) == 1
        return (
            agreed
            and self._online(self.master()) == len(self.servers) - 1
            and all(sentinel.sees(len(self.servers) - 1, len(self.sentinels)) for sentinel in self.sentinels)
        )

    def _online(self, master: RedisProcess) -> int:
        """How many replicas are up to date with a master."""
        with master.client() as client:
            replication = client.info("replication")
        states = [
            each["state"] for name, each in replication.items() if name.startswith("slave") and isinstance(each, dict)
        ]
        return states.count("online") if replication["role"] == "master" else -1

    def master_address(self, sentinel: SentinelProcess | None = None) -> tuple[str, int]:
        """The address of the master, as a sentinel tells it (the first one unless another is named)."""
        host, port = (sentinel or self.sentinels[0]).ask("GET-MASTER-ADDR-BY-NAME")
        return host.decode(), int(port)

    def master(self) -> RedisProcess:
        """The master, as the first sentinel tells it."""
        _, port = self.master_address()
        return next(server for server in self.servers if server.port == port)

    def replicas(self) -> list[RedisProcess]:
        """All servers but the master."""
        master = self.master()
        return [server for server in self.servers if server is not master]

    def flush(self) -> None:
        """Empty the set."""
        with self.master().client() as client:
            client.flushall()

    def kill_master(self) -> RedisProcess:
        """Kill the master without a warning; the set fails over. Start it again and it follows the new one."""
        master = self.master()
        master.stop()
        return master

    def freeze_master(self) -> RedisProcess:
        """Stop the master in its tracks; the set fails over. Thawed, it takes itself for the master for a while."""
        master = self.master()
        master.freeze()
        return master

    def await_failover(self, old: RedisProcess, within: float = START_SECONDS) -> RedisProcess:
        """Wait until all sentinels name another master than the old one, and it is one; return it."""

        def moved() -> bool:
            ports = {self.master_address(sentinel)[1] for sentinel in self.sentinels}
            return len(ports) == 1 and old.port not in ports and self._online(self.master()) >= 0

        until(moved, "a failover", within)
        return self.master()

    def client(self, **settings: Any) -> redis.Redis:
        """A client of redis-py's that asks the sentinels where the master is."""
        about = {"password": self.sentinel_password, "protocol": 2, "socket_timeout": 1}
        usual = {"password": self.password, "protocol": 2, "socket_timeout": 1}
        sentinel = Sentinel(self.addresses, sentinel_kwargs=about, **usual | settings)
        return sentinel.master_for(MASTER)


def _fields(flat: list[bytes]) -> dict[str, str]:
    """A map that was sent as a list of names and values in turns."""
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True)
    return directory
