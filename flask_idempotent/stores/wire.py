"""How commands and replies travel on a connection to a Redis server.

redis-py makes the connections (TLS, passwords, databases, unix sockets); what goes over them afterwards is written and
read here, because that is most of what a command costs. Commands are RESP arrays, replies RESP2
(https://redis.io/docs/latest/develop/reference/protocol-spec/).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

READ_SIZE: Final = 65536

# Before 7.0 a server wraps what went wrong in a script: "ERR Error running script (call to f_6ce9…): @user_script:21:
# @user_script: 21: -OOM command not allowed when used memory > 'maxmemory'."
_IN_SCRIPT: Final = re.compile(r"ERR Error running script .*?: -([A-Z]+ .*)", re.DOTALL)

Reply = Any  # bytes, int, None, a list of these, or a ServerError


class Beside(NamedTuple):
    """What belongs to a question beside its commands.

    :param more: gives one packed command that follows from the replies, for the same connection, or none (empty); its
        reply is added to them.
    :param meanwhile: called when the commands are sent, before their replies are waited for; twice where they are sent
        twice.
    """

    more: Callable[[list[Reply]], bytes] | None = None
    meanwhile: Callable[[], object] | None = None


NOTHING: Final = Beside()


class ServerError(Exception):
    """The server's answer to a command is an error.

    :param text: as the server said it, such as ``"MOVED 3999 127.0.0.1:6381"``.
    """

    def __init__(self, text: str) -> None:
        inside = _IN_SCRIPT.fullmatch(text)
        super().__init__(inside[1] if inside else text)
        self.code, _, self.detail = str(self).partition(" ")


class Broken(ConnectionError):
    """The connection is gone, or what came over it makes no sense."""


def pack(*args: bytes | str | int, begun: bytes = b"", number: int = 0) -> bytes:
    """One command as the server reads it.

    :param begun: its first ``number`` parts, packed before.
    """
    parts = [b"*%d\r\n%b" % (number + len(args), begun)]
    for arg in args:
        raw = arg if type(arg) is bytes else b"%d" % arg if type(arg) is int else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


class Wire:
    """One connection.

    :param connection: redis-py's, not yet connected.
    """

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self.used = 0.0  # when it was last given back, in monotonic seconds
        self._connection = connection
        self._socket = connection._sock  # the client has no public way to it
        self._buffer = b""
        self._at = 0

    def exchange(self, commands: bytes, count: int, beside: Beside | None = None) -> list[Reply]:
        """Send packed commands and read as many replies, and one for the command that follows from them.

        :raises TimeoutError: the server did not take, or say, anything for as long as the connection allows.
        :raises OSError: the connection is of no use any more.
        """
        more, meanwhile = beside or NOTHING
        self._socket.sendall(commands)
        if meanwhile is not None:
            meanwhile()
        try:
            data = self._socket.recv(READ_SIZE)
            if count == 1 and (reply := _whole_reply(data)) is not None:
                replies = [reply]
            else:
                replies = self._replies(data, count)
        except ValueError as error:  # a length that is no number
            raise Broken("no reply of the Redis protocol") from error
        if more is not None and (following := more(replies)):
            replies += self.exchange(following, 1)
        return replies

    def close(self) -> None:
        """Hang up. Safe in a forked process: the parent's session goes on."""
        self._connection.disconnect()

    def _replies(self, data: bytes, count: int) -> list[Reply]:
        """Read replies that begin with ``data``, and nothing after them."""
        if not data:
            raise Broken("the server closed the connection")
        self._buffer, self._at = data, 0
        replies = [self._reply() for _ in range(count)]
        if self._at != len(self._buffer):
            raise Broken("the server said more than it was asked")
        self._buffer = b""
        return replies

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
        self._buffer, self._at = self._buffer[self._at :] + data, 0

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


def _whole_reply(data: bytes) -> bytes | int | None:
    """The reply that is all of ``data``, where it is a string or a number, as nearly all are."""
    end = data.find(b"\r\n")
    if end < 0:
        return None
    if data[:1] == b"$" and data[-2:] == b"\r\n" and int(data[1:end]) == len(data) - end - 4:
        return data[end + 2 : -2]
    return int(data[1:end]) if data[:1] == b":" and end == len(data) - 2 else None
