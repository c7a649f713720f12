"""Connections to one Redis server, and how commands and replies travel on them.

redis-py makes the connections (TLS, passwords, databases, unix sockets); what goes over them afterwards is written and
read here, because that is most of what a command costs. Commands are RESP arrays, replies RESP2
(https://redis.io/docs/latest/develop/reference/protocol-spec/).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final

READ_SIZE: Final = 65536

Reply = Any  # bytes, int, None, a list of these, or a ServerError


class ServerError(Exception):
    """The server's answer to a command is an error.

    :param text: as the server said it, such as ``"MOVED 3999 127.0.0.1:6381"``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code, _, self.detail = text.partition(" ")


class Exhausted(Exception):
    """All connections stayed in use for as long as one may wait for one."""


class Broken(ConnectionError):
    """The connection is gone, or what came over it makes no sense."""


def pack(*args: bytes | str | int) -> bytes:
    """One command as the server reads it."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        raw = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


class Wire:
    """One connection.

    :param connection: redis-py's, not yet connected.
    """

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self._socket = connection._sock  # the client has no public way to it
        self._buffer = b""
        self._at = 0

    def exchange(self, commands: bytes, count: int) -> list[Reply]:
        """Send packed commands and read as many replies.

        :raises OSError: the connection is of no use any more.
        """
        self._socket.sendall(commands)
        try:
            replies = [self._reply() for _ in range(count)]
        except ValueError as error:  # a length that is no number
            raise Broken("no reply of the Redis protocol") from error
        if self._at != len(self._buffer):
            raise Broken("the server said more than it was asked")
        self._buffer, self._at = b"", 0
        return replies

    def close(self) -> None:
        """Hang up. Safe in a forked process: the parent's session goes on."""
        self._connection.disconnect()

    def _reply(self) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return None if rest == b"-1" else self._bytes(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"+":
            return rest
        if kind == b"-":
            return ServerError(rest.decode("utf-8", "replace"))
        if kind == b"*":
            return None if rest == b"-1" else [self._reply() for _ in range(int(rest))]
        raise Broken("no reply of the Redis protocol")

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._receive()
        line, self._at = self._buffer[self._at : end], end + 2
        return line

    def _bytes(self, size: int) -> bytes:
        missing = self._at + size + 2 - len(self._buffer)
        if missing > 0:
            self._receive_all(missing)
        end = self._at + size
        data, self._at = self._buffer[self._at : end], end + 2
        return data

    def _receive(self) -> None:
        data = self._socket.recv(READ_SIZE)
        if not data:
            raise Broken("the server closed the connection")
        self._buffer = self._buffer[self._at :] + data if self._buffer else data
        self._at = 0

    def _receive_all(self, missing: int) -> None:
        """A reply of known length, without copying what is there for each piece that comes."""
        pieces = [self._buffer[self._at :]]
        while missing > 0:
            data = self._socket.recv(READ_SIZE)
            if not data:
                raise Broken("the server closed the connection")
            pieces.append(data)
            missing -= len(data)
        self._buffer, self._at = b"".join(pieces), 0


class Pool:
    """Connections to one server, kept for the next who needs one. Safe under threads, greenlets and forks.

    :param connect: makes an unconnected redis-py connection.
    :param limit: connections that exist at the same time.
    :param patience: seconds to wait for one when all are in use.
    """

    def __init__(self, connect: Callable[[], Any], limit: int, patience: float) -> None:
        self._connect = connect
        self._limit = limit
        self._patience = patience
        self.connects = 0  # how often a connection was made
        self._reset()

    def _reset(self) -> None:
        self._idle: list[Wire] = []
        self._made = 0
        self._waiting = 0
        self._freed = threading.Condition()
        self._pid = os.getpid()

    def exchange(self, commands: bytes, count: int, *, urgent: bool = False) -> list[Reply]:
        """Send packed commands on one connection and read as many replies.

        Where a connection that was kept turns out to be gone, they are sent once more on a new one: whatever is sent
        here may be applied twice.

        :param urgent: do not wait for a free connection; a renewal must not queue behind those that it serves.
        :raises OSError: the server cannot be reached, or did not answer in time.
        :raises redis.RedisError: it does not let this client in.
        :raises Exhausted: no connection became free in time.
        """
        if self._pid != os.getpid():
            self._reset()  # a forked process: what was open belongs to the parent
        wire = self._take(urgent)
        if wire is not None:
            try:
                return self._use(wire, commands, count)
            except TimeoutError:
                raise
            except OSError:
                self._take_new()
        return self._use(self._new(), commands, count)

    def close(self) -> None:
        """Hang up on all connections that are not in use."""
        while self._idle:
            self._discard(self._idle.pop())

    def _use(self, wire: Wire, commands: bytes, count: int) -> list[Reply]:
        try:
            replies = wire.exchange(commands, count)
        except BaseException:  # a greenlet may be killed here, too: nobody may read the reply that is under way
            self._discard(wire)
            raise
        self._idle.append(wire)
        if self._waiting:
            with self._freed:
                self._freed.notify()
        return replies

    def _new(self) -> Wire:
        """A new connection, for which there is room already."""
        try:
            wire = Wire(self._connect())
        except BaseException:
            self._leave()
            raise
        self.connects += 1
        return wire

    def _take(self, urgent: bool) -> Wire | None:
        """A kept connection, or None and the right to make one."""
        try:
            return self._idle.pop()
        except IndexError:
            pass
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
            try:
                return self._idle.pop()
            except IndexError:
                pass
            if self._made < self._limit:
                self._made += 1
                return None
            if not self._freed.wait(max(deadline - time.monotonic(), 0)) and time.monotonic() >= deadline:
                raise Exhausted(f"all {self._limit} connections to Redis are in use")

    def _take_new(self) -> None:
        """Make room for a connection in the place of one that is gone."""
        with self._freed:
            self._made += 1

    def _discard(self, wire: Wire) -> None:
        wire.close()
        self._leave()

    def _leave(self) -> None:
        with self._freed:
            self._made -= 1
            if self._waiting:
                self._freed.notify()
