"""Which server has a key: one server, the master that Sentinel names, or a Cluster's master of the key's slot.

Nothing here connects before it is asked for something, so an app starts while its Redis is down, and what has changed
while it was away is looked up anew.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from redis import ConnectionPool, Redis, exceptions
from redis.connection import Connection
from redis.crc import key_slot
from redis.sentinel import Sentinel

from .wire import Broken, Pool, Reply, ServerError, pack

REDIRECTS: Final = 4
ASKING: Final = pack("ASKING")
Place = tuple[str, int]
Settings = Mapping[str, Any]


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
        self._pools: dict[Place, Pool] = {}
        self._lock = threading.Lock()
        self._retired = 0  # connections made by pools that are gone

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
    def connects(self) -> int:
        """How often a connection was made."""
        return self._retired + sum(pool.connects for pool in list(self._pools.values()))

    @abstractmethod
    def exchange(self, key: str, commands: bytes, count: int, *, urgent: bool = False) -> list[Reply]:
        """Send packed commands for one key to the server that has it; see :meth:`Pool.exchange`."""

    def exchange_all(self, commands: Sequence[tuple[str, bytes]]) -> list[Reply]:
        """Send one packed command for each key, all of a server's in one go, without waiting for a free connection."""
        return self.exchange(commands[0][0], b"".join(packed for _, packed in commands), len(commands), urgent=True)

    @abstractmethod
    def client(self) -> Redis:
        """A client of redis-py's to one of the servers, for listening. Its connections are its own."""

    def each(self, commands: bytes, count: int) -> dict[str, list[Reply]]:
        """Send the same to every server that takes writes, for questions about the servers themselves.

        They do not wait for a free connection: who asks how a busy server is should not add to the queue.
        """
        return {self.name: self.exchange("", commands, count, urgent=True)}

    def close(self) -> None:
        """Hang up on all connections that are not in use."""
        for pool in list(self._pools.values()):
            pool.close()

    def _pool(self, place: Place) -> Pool:
        pool = self._pools.get(place)
        if pool is None:
            with self._lock:
                pool = self._pools.get(place)
                if pool is None:
                    pool = self._pools[place] = Pool(self._connector(place), self._limit, self._patience)
        return pool

    def _drop(self, places: Iterable[Place]) -> None:
        with self._lock:
            for place in list(places):
                pool = self._pools.pop(place, None)
                if pool is not None:
                    self._retired += pool.connects
                    pool.close()

    def _connector(self, place: Place) -> Callable[[], Any]:
        settings = {**self._settings, "host": place[0], "port": place[1]}
        return lambda: self._class(**settings)

    def _client_at(self, place: Place) -> Redis:
        settings = {**self._settings, "host": place[0], "port": place[1]}
        return Redis(connection_pool=ConnectionPool(connection_class=self._class, **settings))


class OneServer(Nodes):
    """A single server, by TCP, TLS or unix socket."""

    def __init__(self, connection_class: type[Connection], settings: Settings, limit: int, patience: float) -> None:
        super().__init__(connection_class, settings, limit, patience)
        self._one = self._pools[("", 0)] = Pool(lambda: self._class(**self._settings), limit, patience)

    @property
    def name(self) -> str:
        """``host:port/db``, or the path of the socket."""
        at = self._settings
        place = at["path"] if "path" in at else f"{at.get('host', 'localhost')}:{at.get('port', 6379)}"
        return f"{place}/{at.get('db', 0)}"

    def exchange(self, key: str, commands: bytes, count: int, *, urgent: bool = False) -> list[Reply]:
        """See :class:`Nodes`."""
        return self._one.exchange(commands, count, urgent=urgent)

    def client(self) -> Redis:
        """See :class:`Nodes`."""
        return Redis(connection_pool=ConnectionPool(connection_class=self._class, **self._settings))


class SentinelNodes(Nodes):
    """The master that the sentinels name. It is asked for anew after every failure.

    :param sentinels: redis-py's, with a time limit of its own.
    :param service: the name that the sentinels know the master by.
    """

    replicated = True

    def __init__(
        self,
        sentinels: Sentinel,
        service: str,
        connection_class: type[Connection],
        settings: Settings,
        limit: int,
        patience: float,
    ) -> None:
        super().__init__(connection_class, settings, limit, patience)
        self._sentinels = sentinels
        self._service = service
        self._master: Place | None = None

    @property
    def name(self) -> str:
        """The service's name and database."""
        return f"sentinel {self._service}/{self._settings.get('db', 0)}"

    def exchange(self, key: str, commands: bytes, count: int, *, urgent: bool = False) -> list[Reply]:
        """See :class:`Nodes`. A master that was demoted meanwhile is left for the new one at once."""
        replies = self._exchange(commands, count, urgent)
        if any(isinstance(reply, ServerError) and reply.code == "READONLY" for reply in replies):
            self._forget()
            replies = self._exchange(commands, count, urgent)
        return replies

    def client(self) -> Redis:
        """See :class:`Nodes`."""
        return self._client_at(self._find())

    def _exchange(self, commands: bytes, count: int, urgent: bool) -> list[Reply]:
        try:
            return self._pool(self._find()).exchange(commands, count, urgent=urgent)
        except (OSError, exceptions.ConnectionError, exceptions.TimeoutError):
            self._forget()
            raise

    def _find(self) -> Place:
        if self._master is None:
            host, port = self._sentinels.discover_master(self._service)  # type: ignore[no-untyped-call]
            self._master = (host, int(port))
            self._drop(place for place in list(self._pools) if place != self._master)
        return self._master

    def _forget(self) -> None:
        master, self._master = self._master, None
        if master is not None and master in self._pools:
            self._pools[master].close()


class ClusterNodes(Nodes):
    """The masters of a Redis Cluster, by slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).

    :param startup: servers to ask for the others.
    """

    replicated = True

    def __init__(
        self,
        startup: Sequence[Place],
        connection_class: type[Connection],
        settings: Settings,
        limit: int,
        patience: float,
    ) -> None:
        super().__init__(connection_class, settings, limit, patience)
        self._startup = tuple(startup)
        self._slots: list[tuple[int, int, Place]] = []  # first slot, last slot, master
        self._moved: dict[int, Place] = {}

    @property
    def name(self) -> str:
        """The servers that are asked first."""
        return "cluster " + ",".join(f"{host}:{port}" for host, port in self._startup)

    def exchange(self, key: str, commands: bytes, count: int, *, urgent: bool = False) -> list[Reply]:
        """See :class:`Nodes`. Follows redirections."""
        slot = key_slot(key.encode())
        place, asking = self._master_of(slot), False
        for _ in range(REDIRECTS):
            replies = self._at(place, commands, count, asking, urgent)
            redirection = next((one for one in replies if _redirects(one)), None)
            if redirection is None:
                break
            place, asking = self._follow(redirection, place)
        return replies

    def exchange_all(self, commands: Sequence[tuple[str, bytes]]) -> list[Reply]:
        """See :class:`Nodes`. What was redirected is sent again by itself."""
        places: dict[Place, list[int]] = {}
        for number, (key, _) in enumerate(commands):
            places.setdefault(self._master_of(key_slot(key.encode())), []).append(number)
        replies: list[Reply] = [None] * len(commands)
        for place, numbers in places.items():
            packed = b"".join(commands[number][1] for number in numbers)
            for number, reply in zip(numbers, self._at(place, packed, len(numbers), False, True), strict=True):
                key, again = commands[number]
                replies[number] = self.exchange(key, again, 1, urgent=True)[0] if _redirects(reply) else reply
        return replies

    def client(self) -> Redis:
        """See :class:`Nodes`. What is published on one server is heard on all."""
        return self._client_at(self._master_of(0))

    def each(self, commands: bytes, count: int) -> dict[str, list[Reply]]:
        """See :class:`Nodes`."""
        self._master_of(0)
        masters = sorted({place for _, _, place in self._slots})
        return {f"{host}:{port}": self._at((host, port), commands, count, False, True) for host, port in masters}

    def _at(self, place: Place, commands: bytes, count: int, asking: bool, urgent: bool) -> list[Reply]:
        try:
            if asking:  # goes for the next command, which is the one about the key
                return self._pool(place).exchange(ASKING + commands, count + 1, urgent=urgent)[1:]
            return self._pool(place).exchange(commands, count, urgent=urgent)
        except (OSError, exceptions.ConnectionError, exceptions.TimeoutError):
            self._slots, self._moved = [], {}  # another server may have taken over
            raise

    def _follow(self, redirection: ServerError, origin: Place) -> tuple[Place, bool]:
        """Where a redirection points to, and whether the server there must be told that we were sent."""
        number, _, target = redirection.detail.partition(" ")
        host, _, port = target.rpartition(":")
        place = (host or origin[0], int(port))
        if redirection.code == "MOVED":
            self._moved[int(number)] = place
        return place, redirection.code == "ASK"

    def _master_of(self, slot: int) -> Place:
        if slot in self._moved:
            return self._moved[slot]
        slots = self._slots or self._discover()
        for first, last, place in slots:
            if first <= slot <= last:
                return place
        self._slots = []
        raise ServerError("CLUSTERDOWN no server of the cluster has this slot")

    def _discover(self) -> list[tuple[int, int, Place]]:
        """Ask the servers that we know for those that there are."""
        failure: Exception = Broken("no server of the cluster is known")
        for place in dict.fromkeys((*self._startup, *self._pools)):
            try:
                (reply,) = self._pool(place).exchange(pack("CLUSTER", "SLOTS"), 1, urgent=True)
            except (OSError, exceptions.ConnectionError, exceptions.TimeoutError) as error:
                failure = error
                continue
            if isinstance(reply, ServerError):
                failure = reply
                continue
            found = [(first, last, _place(master, place)) for first, last, master, *_ in reply]
            if found:
                self._slots, self._moved = found, {}
                self._drop(set(self._pools) - {each for _, _, each in found} - set(self._startup))
                return found
        raise failure


def _redirects(reply: Reply) -> bool:
    return isinstance(reply, ServerError) and reply.code in ("MOVED", "ASK")


def _place(server: list[Any], asked: Place) -> Place:
    """A server of CLUSTER SLOTS; without a name of its own it is the one that was asked."""
    return (server[0] or b"").decode() or asked[0], int(server[1])
