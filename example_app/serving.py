"""A WSGI app on a loopback socket, served by threads of this process and stopped without rudeness."""

from __future__ import annotations

import ipaddress
import logging
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from flask import Flask, request
from werkzeug.exceptions import BadRequest
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 5.0  # how long stop() waits for requests that are being answered
POLL_SECONDS = 0.05  # how soon the accepting loop notices that it shall end

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})

access_log = logging.getLogger(__name__)


def answer_to_loopback_names(app: Flask) -> None:
    """Let an app refuse (400) requests under any other host name, so that no web page reaches it by one of its own."""
    app.before_request(_refuse_other_names)


def _refuse_other_names() -> None:
    if re.sub(r":[0-9]+$", "", request.host) not in LOOPBACK_NAMES:
        raise BadRequest("This server answers to 127.0.0.1 and localhost only.")


@contextmanager
def stop_signals() -> Iterator[Callable[[], int]]:
    """Catch SIGINT and SIGTERM inside the block; calling what it yields waits for the first of them."""
    received: SimpleQueue[int] = SimpleQueue()  # unlike an Event, its put() may interrupt its own get()
    previous = {
        number: signal.signal(number, lambda number, _frame: received.put(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received.get
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Server:
    """One app on one loopback address.

    The socket listens from the constructor on, so that ``url`` is known before the app has to be: build the
    server, configure the app with the address, and hand it to :meth:`start`.
    """

    def __init__(self, host: str = LOOPBACK, port: int = 0) -> None:
        """Bind and listen.

        :param host: a loopback address, as digits.
        :param port: the TCP port; 0 takes any free one.
        :raises ValueError: when the host is no loopback address.
        :raises OSError: when the port cannot be had.
        """
        self._family = _loopback_family(host)
        self._socket = socket.create_server((host, port), family=self._family)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._server: _ThreadedServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """Where the app is reached, such as ``http://127.0.0.1:5000``."""
        host = f"[{self.host}]" if self._family == socket.AF_INET6 else self.host
        return f"http://{host}:{self.port}"

    def start(self, app: WSGIApplication) -> None:
        """Answer requests with ``app`` in a thread of its own; raises RuntimeError when called again."""
        if self._thread is not None or self._socket.fileno() < 0:
            raise RuntimeError("A Server is started once; build another one.")
        with self._socket as listening:  # the server works on a duplicate of the descriptor
            self._server = _ThreadedServer(self.host, self.port, app, _Handler, fd=listening.fileno())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name=f"serve:{self.port}", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Free the port and let running requests finish for up to five seconds. Safe to repeat."""
        if self._server is None or self._thread is None:
            self._socket.close()
            return
        self._server.shutdown()
        self._thread.join()
        self._server.drain(DRAIN_SECONDS)

    def __enter__(self) -> Server:
        """Return the server; leaving the block stops it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        self.stop()


class _ThreadedServer(ThreadedWSGIServer):
    """Counts the requests in progress: joining all threads would wait for browsers' idle connections, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._changed = threading.Condition()
        self._running = 0

    def count(self, step: int) -> None:
        with self._changed:
            self._running += step
            self._changed.notify_all()

    def drain(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0, timeout)


class _Handler(WSGIRequestHandler):
    timeout = 30  # seconds for which a connection may be silent

    def run_wsgi(self) -> None:
        server = cast(_ThreadedServer, self.server)
        server.count(1)
        try:
            super().run_wsgi()
        finally:
            server.count(-1)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        access_log.debug("%s %s %s", self.command, code, size)


def _loopback_family(host: str) -> socket.AddressFamily:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"host takes a loopback address such as {LOOPBACK}, not {host!r}") from None
    if not address.is_loopback:
        raise ValueError(f"host takes a loopback address such as {LOOPBACK}: {host} is open to others")
    return socket.AF_INET6 if address.version == 6 else socket.AF_INET
