"""Connections that are kept for the next who needs one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from .wire import Beside, Reply, Wire

# Firewalls and address translators drop connections that were silent for some minutes (four, at the soonest of the
# large clouds'), and tell neither end.
FRESH_SECONDS: Final = 180.0

Place = tuple[str, int]


class Exhausted(Exception):
    """All connections stayed in use for as long as one may wait for one."""


class Pool:
    """Connections of one process to one server. Safe under threads and greenlets.

    :param connect: makes an unconnected redis-py connection.
    :param limit: connections that are kept, and that exist at the same time but for urgent ones.
    :param patience: seconds to wait for one when all are in use.
    """

    def __init__(self, connect: Callable[[], Any], limit: int, patience: float) -> None:
        self._connect = connect
        self._limit = limit
        self._patience = patience
        self._idle: list[Wire] = []  # its append and pop are atomic
        self._made = 0
        self._waiting = 0
        self._closes = 0  # how often all were to be hung up
        self._freed = threading.Condition()
        self.connected: Callable[[], object] = lambda: None  # called when a connection was made

    def exchange(
        self, commands: bytes, count: int, *, urgent: bool = False, beside: Beside | None = None
    ) -> list[Reply]:
        """Send packed commands on one connection and read as many replies.

        Where a connection that was kept turns out to be gone, they are sent once more on a new one: whatever is sent
        here may be applied twice.

        :param urgent: do not wait for a free connection; a renewal must not queue behind those that it serves.
        :param beside: what else belongs to them.
        :raises OSError: the server cannot be reached, or did not answer in time.
        :raises redis.RedisError: it does not let this client in.
        :raises Exhausted: no connection became free in time.
        """
        closes = self._closes
        wire = self._kept() or self._take(urgent)
        try:
            if wire is not None:
                try:
                    replies = wire.exchange(commands, count, beside)
                except TimeoutError:
                    raise
                except OSError:  # it was kept, and is gone
                    wire.close()
                    wire = None
            if wire is None:
                wire = self._new()
                replies = wire.exchange(commands, count, beside)
        except BaseException:  # a greenlet may be killed here, too: nobody may read the reply that is under way
            self._drop(wire)
            raise
        if self._made > self._limit:  # one was urgent
            self._drop(wire)
            return replies
        wire.used = time.monotonic()
        self._idle.append(wire)
        if self._waiting:
            with self._freed:
                self._freed.notify()
        if closes != self._closes:  # nobody may come again to close this one
            self._hang_up()
        return replies

    def close(self) -> None:
        """Hang up on all connections: on those in use as soon as they are given back."""
        self._closes += 1
        self._hang_up()

    def _hang_up(self) -> None:
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return
            self._drop(wire)

    def _new(self) -> Wire:
        """A new connection, for which there is room already."""
        wire = Wire(self._connect())
        self.connected()
        return wire

    def _take(self, urgent: bool) -> Wire | None:
        """None and the right to make a connection, or one that has become free."""
        with self._freed:
            if urgent or self._made < self._limit:
                self._made += 1
                return None
            self._waiting += 1
            try:
                return self._wait()
            finally:
                self._waiting -= 1

    def _wait(self) -> Wire | None:
        deadline = time.monotonic() + self._patience
        while True:
            if (wire := self._kept()) is not None:
                return wire
            if self._made < self._limit:
                self._made += 1
                return None
            left = deadline - time.monotonic()
            if left <= 0:
                raise Exhausted(f"all {self._limit} connections to Redis are in use")
            self._freed.wait(left)

    def _kept(self) -> Wire | None:
        """A connection that nobody uses, and that was used not long ago."""
        while True:
            try:
                wire = self._idle.pop()
            except IndexError:
                return None
            if time.monotonic() - wire.used < FRESH_SECONDS:
                return wire
            self._drop(wire)

    def _drop(self, wire: Wire | None) -> None:
        """Hang up, and make room for another connection."""
        if wire is not None:
            wire.close()
        with self._freed:
            self._made -= 1
            if self._waiting:
                self._freed.notify()


class Pools(dict[Place, Pool]):
    """The pools of one process, by the server. There is one for each server that is asked for.

    :param make: a pool for a server.
    """

    def __init__(self, make: Callable[[Place], Pool]) -> None:
        super().__init__()
        self._make = make
        self._lock = threading.Lock()
        self.connects = Count()

    def __missing__(self, place: Place) -> Pool:
        with self._lock:
            pool = self.get(place)
            if pool is None:
                pool = self._make(place)
                pool.connected = self.connects.add
                self[place] = pool
            return pool

    def only(self, places: Collection[Place]) -> None:
        """Hang up on all servers but these."""
        with self._lock:
            gone = [self.pop(place) for place in list(self) if place not in places]
        for pool in gone:
            pool.close()

    def close(self) -> None:
        """Hang up on all connections: on those in use as soon as they are given back."""
        for pool in list(self.values()):
            pool.close()


class Count:
    """How often a connection was made. It knows nothing of the pools: no circle keeps what a forked process lets go of,
    and with it the parent's sockets, from going at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.number = 0

    def add(self) -> None:
        """Count one more."""
        with self._lock:
            self.number += 1
