"""A real redis-server for tests: on a free port, in a directory of its own, killed by its pid."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .binaries import SYSTEM, binary, environment
from .ports import Port
from .process import ServerProcess
from .tls import Tls


@dataclass(frozen=True)
class User:
    """A user of a server beside the administrator.

    :param rules: as ACL SETUSER takes them, without ``on`` and the password.
    """

    name: str
    password: str
    rules: Sequence[str]

    @property
    def options(self) -> list[str]:
        return ["--user", self.name, "on", f">{self.password}", *self.rules]


class RedisProcess(ServerProcess):
    """One server. It keeps nothing on disk, so that a restart comes back empty, unless ``persistent``.

    :param options: of redis-server, as on its command line.
    :param persistent: every write is on disk before it is answered.
    :param password: of the administrator, the user named ``default``.
    :param user: another user, with rights of its own.
    :param unix_socket: whether there is one, at ``socket_path``, beside the port.
    :param tls: the port speaks TLS, and nothing else.
    :param maxmemory: bytes, after which it takes nothing more.
    :param replica_of: the server that this one copies.
    :param bus: whether the port of a cluster's bus is wanted, too.
    :param version: which server, a name in :mod:`.binaries`.
    :param variables: of its environment, beside the usual ones.
    """

    def __init__(
        self,
        directory: Path,
        *options: str,
        persistent: bool = False,
        password: str | None = None,
        user: User | None = None,
        unix_socket: bool = False,
        tls: Tls | None = None,
        maxmemory: int | None = None,
        replica_of: RedisProcess | None = None,
        bus: bool = False,
        version: str = SYSTEM,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._held = Port(bus=bus)
        self.port = self._held.number
        self.tls, self.password, self.user = tls, password, user
        self.socket_path = directory / "redis.sock"
        command = [str(binary(version)), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
        command += ["--port", str(self.port)] if tls is None else tls.server_options(self.port)
        command += ["--appendonly", "yes" if persistent else "no", "--appendfsync", "always"]
        if unix_socket:
            assert len(str(self.socket_path)) < 108, f"too long for a unix socket: {self.socket_path}"
            command += ["--unixsocket", str(self.socket_path)]
        if password is not None:
            command += ["--requirepass", password, "--masterauth", password]
        if maxmemory is not None:
            command += ["--maxmemory", str(maxmemory), "--maxmemory-policy", "noeviction"]
        if replica_of is not None:
            command += ["--replicaof", "127.0.0.1", str(replica_of.port)]
        # A replica is fed as soon as it asks, not together with others that may ask within 5 seconds.
        command += ["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]
        command += [*(user.options if user else ()), *options]
        env = environment(version)
        super().__init__(directory, command, {**(env or os.environ), **variables} if variables else env)

    @property
    def url(self) -> str:
        """Of the administrator."""
        return self._url("", self.password)

    @property
    def user_url(self) -> str:
        """Of the other user."""
        assert self.user is not None
        return self._url(self.user.name, self.user.password)

    @property
    def unix_url(self) -> str:
        """Of the unix socket."""
        return f"unix://{self.socket_path}?db=0"

    def _url(self, name: str, password: str | None) -> str:
        scheme, host = ("redis", "127.0.0.1") if self.tls is None else ("rediss", "localhost")
        credentials = "" if password is None else f"{quote(name, safe='')}:{quote(password, safe='')}@"
        return f"{scheme}://{credentials}{host}:{self.port}/0"

    def start(self) -> Self:
        self.launch()
        self.await_ready()
        return self

    def answers(self) -> bool:
        try:
            with self.client(socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
                return bool(client.ping())
        except (redis.ConnectionError, redis.TimeoutError):  # BusyLoadingError is a ConnectionError
            return False

    def flush(self) -> None:
        """Empty the server."""
        with self.client() as client:
            client.flushall()

    def client(self, **settings: Any) -> redis.Redis:
        """A plain client of the administrator.

        :param settings: of redis-py, instead of the usual ones.
        """
        usual = {"port": self.port, "password": self.password, "protocol": 2, "socket_timeout": 5}
        return redis.Redis(**usual | (self.tls.client_settings() if self.tls else {}) | settings)

    def client_of_user(self, **settings: Any) -> redis.Redis:
        """A plain client of the other user."""
        assert self.user is not None
        return self.client(username=self.user.name, password=self.user.password, **settings)
