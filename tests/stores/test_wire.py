"""Replies as they come off a socket: whole, in pieces, and wrong."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from flask_idempotent.stores.wire import Beside, Broken, ServerError, Wire, pack

REPLIES: dict[bytes, Any] = {
    b"$5\r\nhello\r\n": b"hello",
    b"$0\r\n\r\n": b"",
    b"$-1\r\n": None,
    b"$4\r\n\r\n\r\n\r\n": b"\r\n\r\n",
    b"$6\r\n$2\r\nab\r\n": b"$2\r\nab",
    b":1\r\n": 1,
    b":-12\r\n": -12,
    b"+OK\r\n": b"OK",
    b"*2\r\n:1\r\n$1\r\nx\r\n": [1, b"x"],
    b"*-1\r\n": None,
    b"*0\r\n": [],
    b"$70000\r\n" + b"y" * 70_000 + b"\r\n": b"y" * 70_000,
}


class Connection:
    """Stands for redis-py's; its other end is ours.

    :param mine: the client's end.
    """

    def __init__(self, mine: socket.socket) -> None:
        self._sock = mine

    def connect(self) -> None: ...

    def disconnect(self) -> None:
        self._sock.close()


@pytest.fixture
def ends() -> Iterator[tuple[Wire, socket.socket]]:
    """A connection, and the server's end of it."""
    mine, server = socket.socketpair()
    mine.settimeout(5)
    with mine, server:
        yield Wire(Connection(mine)), server


def send_in_two(server: socket.socket, raw: bytes, cut: int) -> threading.Thread:
    """Send something with a pause in it."""

    def send() -> None:
        server.sendall(raw[:cut])
        time.sleep(0.002)
        server.sendall(raw[cut:])

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("raw", REPLIES, ids=lambda raw: repr(raw[:20]))
def test_a_reply_is_the_same_wherever_it_is_cut(ends: tuple[Wire, socket.socket], raw: bytes) -> None:
    wire, server = ends
    cuts = range(len(raw)) if len(raw) < 100 else (0, 1, 7, 8, 9, 65_535, 65_536, 65_537, len(raw) - 2, len(raw) - 1)
    for cut in cuts:
        sending = send_in_two(server, raw, cut)
        assert wire.exchange(pack("GET", "k"), 1) == [REPLIES[raw]]
        sending.join()


@pytest.mark.parametrize("cut", range(12))
def test_several_replies_are_read_in_their_order(ends: tuple[Wire, socket.socket], cut: int) -> None:
    wire, server = ends
    sending = send_in_two(server, b":1\r\n$1\r\nx\r\n:2\r\n", cut)
    assert wire.exchange(pack("PING") * 3, 3) == [1, b"x", 2]
    sending.join()


def test_what_is_to_be_done_meanwhile_is_done_between_question_and_answer(ends: tuple[Wire, socket.socket]) -> None:
    wire, server = ends

    def answer() -> None:  # nobody else does
        assert server.recv(100) == pack("PING")
        server.sendall(b"+PONG\r\n")

    assert wire.exchange(pack("PING"), 1, Beside(meanwhile=answer)) == [b"PONG"]


def test_an_error_is_a_reply(ends: tuple[Wire, socket.socket]) -> None:
    wire, server = ends
    server.sendall(b"-MOVED 1 :2\r\n")
    (reply,) = wire.exchange(pack("GET", "k"), 1)
    assert isinstance(reply, ServerError)
    assert (reply.code, reply.detail) == ("MOVED", "1 :2")


@pytest.mark.parametrize(
    "raw",
    [
        b":1\r\n:2\r\n",
        b"$1\r\nx\r\n:2\r\n",
        b"$1\r\nxy\r\n",
        b":\r\n",
        b":x\r\n",
        b"$x\r\n",
        b"!5\r\n",
        b"\r\n",
        b"$-1\r\n\r\n",
    ],
)
def test_what_is_no_answer_to_one_question_breaks_the_connection(ends: tuple[Wire, socket.socket], raw: bytes) -> None:
    wire, server = ends
    server.sendall(raw)
    with pytest.raises(Broken):
        wire.exchange(pack("GET", "k"), 1)


@pytest.mark.parametrize("raw", [b"", b":", b":1", b"$5\r\nhel", b"$5\r\nhello\r", b"*2\r\n:1\r\n"])
def test_a_server_that_hangs_up_in_the_middle_breaks_the_connection(
    ends: tuple[Wire, socket.socket], raw: bytes
) -> None:
    wire, server = ends
    server.sendall(raw)
    server.shutdown(socket.SHUT_WR)
    with pytest.raises(Broken):
        wire.exchange(pack("GET", "k"), 1)


def test_signals_do_not_lengthen_the_wait_for_a_silent_server(ends: tuple[Wire, socket.socket]) -> None:
    """A profiler's timer, say, in a worker that waits in its main thread."""
    wire, _ = ends
    wire._socket.settimeout(0.5)
    again = Wire(Connection(wire._socket))
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    ended = threading.Timer(3, wire._socket.shutdown, [socket.SHUT_RDWR])  # ends the test where the limit does not
    ended.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(TimeoutError):
            again.exchange(pack("PING"), 1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        ended.cancel()
