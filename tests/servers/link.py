"""The network between a worker and its Redis: a TCP proxy that a test can cut, freeze, or make lose replies."""

from __future__ import annotations

import selectors
import socket
import threading
from enum import Enum, auto


class Way(Enum):
    """How the network behaves."""

    OPEN = auto()
    CUT = auto()  # nobody listens, and the connections that were there are gone
    FROZEN = auto()  # connections are made and requests read, but nothing is passed on
    LOSING = auto()  # requests are passed on; the connection breaks before a reply that the test named is delivered


class Link:
    """Forwards a port of its own to a Redis on this machine.

    In a Cluster it stands before a node that is made to announce it (``Cluster.announce``). In a Sentinel set it can
    stand before a sentinel, whose address a client is told, but not before a server, whose address the sentinels tell.

    :param port: of the Redis.
    """

    def __init__(self, port: int) -> None:
        self._upstream = port
        self._way = Way.OPEN
        self._needle = b""
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._clients: set[socket.socket] = set()
        self._doomed: set[socket.socket] = set()
        self._received = bytearray()
        self._listener: socket.socket | None = None
        self.port = 0
        self._listen()
        self._bell, self._ear = socket.socketpair()
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._running = True
        self._thread = threading.Thread(target=self._run, name="link")
        self._thread.start()

    def open(self) -> None:
        """Pass everything on, over new connections where the old ones broke."""
        self._change(Way.OPEN)

    def cut(self) -> None:
        """Refuse connections and break those that are there."""
        self._change(Way.CUT)

    def freeze(self) -> None:
        """Take requests and never answer."""
        self._change(Way.FROZEN)

    def lose_replies_to(self, command: bytes) -> None:
        """Let a command reach Redis, and break the connection instead of delivering its reply."""
        self._needle = command
        self._change(Way.LOSING)

    def asked(self, command: bytes) -> int:
        """How often a command has come by, whether it was passed on or not."""
        with self._lock:
            return self._received.count(command)

    def close(self) -> None:
        """Break everything and end the thread."""
        self._change(Way.CUT)
        self._running = False
        self._ring()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._bell.close()
        self._ear.close()
        self._selector.close()

    def _change(self, way: Way) -> None:
        with self._lock:
            self._way = way
            if way is Way.CUT:
                self._hang_up_all()
            elif self._listener is None:
                self._listen()
            elif way is Way.OPEN:
                self._drop_stuck()
        if hasattr(self, "_bell"):
            self._ring()

    def _drop_stuck(self) -> None:
        """Connections whose requests were swallowed would wait for ever."""
        for client in list(self._clients):
            if client in self._doomed:
                self._hang_up(client)

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def _hang_up_all(self) -> None:
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for client in list(self._clients):
            self._hang_up(client)

    def _hang_up(self, client: socket.socket) -> None:
        server = self._peers.pop(client)
        del self._peers[server]
        self._clients.discard(client)
        self._doomed.discard(client)
        for end in (client, server):
            self._selector.unregister(end)
            end.close()

    def _ring(self) -> None:
        self._bell.send(b"!")

    def _run(self) -> None:
        while self._running:
            for event, _ in self._selector.select(0.5):
                with self._lock:
                    self._serve(event.fileobj)  # type: ignore[arg-type]

    def _serve(self, ready: socket.socket) -> None:
        if ready is self._ear:
            self._ear.recv(4096)
        elif ready is self._listener:
            self._accept()
        elif ready in self._peers:
            self._forward(ready)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
        except OSError:
            client.close()
            return
        self._peers[client], self._peers[server] = server, client
        self._clients.add(client)
        for end in (client, server):
            end.settimeout(5)
            self._selector.register(end, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        target = self._peers[source]
        client = source if source in self._clients else target
        try:
            data = source.recv(65536)
            if not data:
                raise ConnectionResetError
            if source is client:
                self._received += data
                if self._way is Way.FROZEN or (self._way is Way.LOSING and self._needle in data):
                    self._doomed.add(client)
                if self._way is Way.FROZEN:
                    return
            elif client in self._doomed:
                raise ConnectionResetError
            target.sendall(data)
        except OSError:
            self._hang_up(client)
