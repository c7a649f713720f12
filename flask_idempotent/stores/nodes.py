"""Which server has a key: the only one, or the master that Sentinel names. (For a Cluster see :mod:`.cluster`.)

Nothing here connects before it is asked for something, so an app starts while its Redis is down, and what has changed
while it was away is looked up anew.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from os import getpid
from typing import Any, Final

from redis import ConnectionPool, Redis, exceptions
from redis.connection import Connection

from ..core.forks import PerProcess
from .pool import Count, Place, Pool, Pools
from .sentinels import NoMaster, Sentinels
from .wire import Beside, Reply, ServerError

LOST: Final = (OSError, exceptions.ConnectionError, exceptions.TimeoutError)  # a server did not answer
SILENT_SECONDS: Final = 1.0  # after which a master may be another, for all that we have heard
AGAIN_SECONDS: Final = 1.0  # after which sentinels are asked again that did not answer

Settings = Mapping[str, Any]
_ONLY: Final[Place] = ("", 0)  # stands for the one place there is


class Nodes(ABC):
    """The servers of one Redis.

    :param connection_class: redis-py's class of a connection.
    :param settings: its arguments, but for host and port where these change.
    :param limit: connections per server.
    :param patience: seconds to wait for a free one.
    """

    replicated = False  # whether another server may take over

    def __init__(self, connection_class: type[Connection], settings: Settings, limit: int, patience: float) -> None:
        self._class = connection_class
        self._settings = dict(settings)
        self._limit = limit
        self._patience = patience
        self._pools = PerProcess(lambda: Pools(self._pool_at))

    @property
    @abstractmethod
    def name(self) -> str:
        """What tells this Redis from others, without any secret."""

    @property
    def timeout(self) -> float:
        """How many seconds a server may take to answer."""
        return float(self._settings["socket_timeout"])

    @property
    def user(self) -> str:
        """The name that this client gives itself."""
        return self._settings.get("username") or "default"

    @property
    def connects(self) -> Count:
        """How often a connection was made by this process."""
        return self._pools().connects

    @abstractmethod
    def exchange(
        self, key: str, commands: bytes, count: int, *, urgent: bool = False, beside: Beside | None = None
    ) -> list[Reply]:
        """Send packed commands for one key to the server that has it; see :meth:`Pool.exchange`."""

    def exchange_all(self, commands: Sequence[tuple[str, bytes]]) -> list[Reply]:
        """Send one packed command for each key, all of a server's in one go, without waiting for a free connection."""
        return self.exchange(commands[0][0], b"".join(packed for _, packed in commands), len(commands), urgent=True)

    def doubt(self, key: str) -> None:  # noqa: B027 - the only server there is has no rival
        """Something is wrong with the server that has a key: find out before it is next used whether another has it."""

    @abstractmethod
    def client(self) -> Redis:
        """A client of redis-py's to one of the servers, for listening. Its connections are its own."""

    def each(self, commands: bytes, count: int, *, urgent: bool = True) -> dict[str, list[Reply]]:
        """Send the same to every server that takes writes, for questions about the servers themselves.

        :param urgent: do not wait for a free connection: who asks how a busy server is should not add to the queue.
        """
        return {self.name: self.exchange("", commands, count, urgent=urgent)}

    def close(self) -> None:
        """Hang up on all connections: on those in use as soon as they are given back."""
        self._pools().close()

    def _pool_at(self, place: Place) -> Pool:
        settings = self._settings_at(place)
        return Pool(lambda: self._class(**settings), self._limit, self._patience)

    def _settings_at(self, place: Place) -> dict[str, Any]:
        return {**self._settings, "host": place[0], "port": place[1]}

    def _client_at(self, place: Place) -> Redis:
        return Redis(connection_pool=ConnectionPool(connection_class=self._class, **self._settings_at(place)))


class OneServer(Nodes):
    """A single server, by TCP, TLS or unix socket."""

    @property
    def name(self) -> str:
        """``host:port/db``, or the path of the socket."""
        at = self._settings
        place = at["path"] if "path" in at else f"{at.get('host', 'localhost')}:{at.get('port', 6379)}"
        return f"{place}/{at.get('db', 0)}"

    @property
    def pool(self) -> Pool:
        """The connections of this process."""
        return self._pools()[_ONLY]

    def exchange(
        self, key: str, commands: bytes, count: int, *, urgent: bool = False, beside: Beside | None = None
    ) -> list[Reply]:
        """See :class:`Nodes`."""
        return self._pools[getpid()][_ONLY].exchange(commands, count, urgent=urgent, beside=beside)

    def client(self) -> Redis:
        """See :class:`Nodes`."""
        return self._client_at(_ONLY)

    def _settings_at(self, place: Place) -> dict[str, Any]:
        return self._settings


class SentinelNodes(Nodes):
    """The master that the sentinels name.

    They are asked anew after every failure, and after a silence: who was frozen through a failover still takes itself
    for the master when it wakes up. Where no sentinel answers, the master that is known goes on.

    :param sentinels: who knows the master.
    """

    replicated = True

    def __init__(
        self,
        sentinels: Sentinels,
        connection_class: type[Connection],
        settings: Settings,
        limit: int,
        patience: float,
    ) -> None:
        super().__init__(connection_class, settings, limit, patience)
        self._sentinels = sentinels
        self._master: Place | None = None
        self._certain_until = 0.0  # in monotonic seconds
        self._no_answer_until = 0.0

    @property
    def name(self) -> str:
        """The service's name and database."""
        return f"sentinel {self._sentinels.service}/{self._settings.get('db', 0)}"

    def exchange(
        self, key: str, commands: bytes, count: int, *, urgent: bool = False, beside: Beside | None = None
    ) -> list[Reply]:
        """See :class:`Nodes`. A master that is gone or demoted is left at once for the new one, where there is one."""
        place = self._find()
        try:
            replies = self._at(place, commands, count, urgent, beside)
        except LOST:
            self.doubt(key)
            if (other := self._find()) == place:
                raise
        else:
            if not any(isinstance(reply, ServerError) and reply.code == "READONLY" for reply in replies):
                return replies
            self.doubt(key)
            if (other := self._find()) == place:
                return replies
        return self._at(other, commands, count, urgent, beside)

    def doubt(self, key: str) -> None:
        """See :class:`Nodes`."""
        self._certain_until = 0.0

    def client(self) -> Redis:
        """See :class:`Nodes`."""
        return self._client_at(self._find())

    def close(self) -> None:
        """See :class:`Nodes`."""
        super().close()
        self._sentinels.close()

    def _at(self, place: Place, commands: bytes, count: int, urgent: bool, beside: Beside | None) -> list[Reply]:
        replies = self._pools[getpid()][place].exchange(commands, count, urgent=urgent, beside=beside)
        if place == self._master and self._certain_until:
            self._certain_until = time.monotonic() + SILENT_SECONDS
        return replies

    def _find(self) -> Place:
        master, now = self._master, time.monotonic()
        if master is not None and (now < self._certain_until or now < self._no_answer_until):
            return master
        try:
            found = self._sentinels.master()
        except NoMaster:
            raise
        except LOST:
            if master is None:
                raise
            self._no_answer_until = time.monotonic() + AGAIN_SECONDS
            return master
        self._master, self._certain_until = found, time.monotonic() + SILENT_SECONDS
        self._pools().only([found])
        return found
