"""The floor: what one question to Redis costs at least, through redis-py and without it."""

from __future__ import annotations

import socket
from collections.abc import Callable

import redis

from tests.servers.standalone import RedisProcess

_KEY = "floor"
_VALUE = b"z" * 400  # about a record of ours

Call = Callable[[int], object]


def redis_py(server: RedisProcess) -> Call:
    """One ``GET`` by a redis-py client through its pool, as anybody would write it."""
    client = redis.Redis(port=server.port, protocol=2)
    client.set(_KEY, _VALUE)
    return lambda _: client.get(_KEY)


def raw_socket(server: RedisProcess) -> Call:
    """One ``GET`` over a held socket, its reply not parsed: what kernel and server take."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    command = b"*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n" % (len(_KEY), _KEY.encode())

    def call(_: int) -> bytes:
        connection.sendall(command)
        return connection.recv(4096)

    return call
