"""How a waiting request hears that another one has ended: pub/sub over one connection per process."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final

from redis import Redis, exceptions

from ..core.forks import PerProcess
from .failures import ERRORS

log = logging.getLogger("flask_idempotent")

IDLE_SECONDS: Final = 30.0  # after which the connection is given back, and with it all subscriptions
LEFTOVERS: Final = 100  # subscriptions that nobody needs any more are undone together, so many at a time
SAFETY_SECONDS: Final = 1.0  # between two reads of one who listens, should a message be lost
PING_SECONDS: Final = 1.0  # of silence, after which a server is asked whether it is still there
POLL_SECONDS: Final = 0.025  # between two reads of one who cannot listen
RETRY_SECONDS: Final = 5.0  # after which pub/sub is tried again where it failed


class Ear:
    """One waiting request."""

    def __init__(self) -> None:
        self.ready = threading.Event()  # the server has confirmed the subscription, or there will be none
        self.changed = threading.Event()
        self.hears = False

    def wait(self, seconds: float) -> None:
        """Wait for a change, at most until it is wise to look again anyway."""
        self.changed.wait(min(seconds, SAFETY_SECONDS if self.hears else POLL_SECONDS))
        self.changed.clear()


class Wakeups:
    """Subscribes to the keys that are waited for. The record's key is the name of its channel.

    One thread per process owns the subscribed connection and is the only one to use it; it starts with the first who
    waits, after any fork, and ends when nobody has waited for a while. Where pub/sub fails or is forbidden, those who
    wait look for themselves.

    :param connect: gives a client for the connection to listen on.
    """

    def __init__(self, connect: Callable[[], Redis]) -> None:
        self._listener = PerProcess(lambda: _Listener(connect), _Listener.abandon)

    def listening(self, key: str, timeout: float) -> AbstractContextManager[Ear]:
        """Listen to a key. On entry the subscription stands, or the ear knows that it hears nothing.

        :param timeout: seconds to wait for the subscription.
        """
        return self._listener().listening(key, timeout)

    def close(self) -> None:
        """Give the connection back. Those who wait look for themselves from now on."""
        self._listener().close()


class _Listener:
    """Those who wait in one process, and the thread that hears for them."""

    def __init__(self, connect: Callable[[], Redis]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._ears: dict[str, set[Ear]] = {}
        self._subscribed: set[str] = set()
        self._asked: set[str] = set()  # subscribed to, or asked for; of the thread alone, like the next two
        self._unconfirmed: Counter[str] = Counter()
        self._pinged = False  # and not yet answered
        self._running = False
        self._closing = False
        self._broken_until = 0.0
        self._bell: socket.socket | None = None
        self._open: tuple[Any, ...] = ()  # what the thread closes in the end

    @contextmanager
    def listening(self, key: str, timeout: float) -> Iterator[Ear]:
        ear = Ear()
        with self._lock:
            self._ears.setdefault(key, set()).add(ear)
            if self._running and key in self._subscribed:
                ear.hears = True
            elif time.monotonic() >= self._broken_until:
                self._call()
                ear.hears = True
            if key in self._subscribed or not ear.hears:
                ear.ready.set()
        try:
            ear.hears = ear.ready.wait(timeout) and ear.hears
            yield ear
        finally:
            with self._lock:
                ears = self._ears[key]
                ears.discard(ear)
                if not ears:
                    del self._ears[key]

    def close(self) -> None:
        with self._lock:
            if self._running:
                self._closing = True
                self._call()

    def abandon(self) -> None:
        """In a forked process: close what the parent's thread would close, which has not come along."""
        for each in self._open:
            each.close()
        if self._bell is not None:
            self._bell.close()

    def _call(self) -> None:
        """Have the thread look at what is wanted; hold the lock."""
        if not self._running:
            self._running, self._subscribed = True, set()
            self._bell, rings = socket.socketpair()
            self._bell.setblocking(False)
            rings.setblocking(False)
            threading.Thread(target=self._run, args=(rings,), name="idempotency-wakeups", daemon=True).start()
        if self._bell is not None:
            with suppress(BlockingIOError):  # it rings already
                self._bell.send(b"!")

    def _run(self, bell: socket.socket) -> None:
        try:
            with selectors.DefaultSelector() as selector, self._connect() as client, client.pubsub() as pubsub:
                self._open = (bell, selector, pubsub)
                selector.register(bell, selectors.EVENT_READ)
                self._serve(pubsub, selector, bell)
        except ERRORS as error:
            log.info("idempotency: no wake-ups from Redis, those who wait look for themselves: %s", error)
            with self._lock:
                self._broken_until = time.monotonic() + RETRY_SECONDS
                self._end()
        finally:
            self._open = ()
            bell.close()

    def _serve(self, pubsub: Any, selector: selectors.BaseSelector, bell: socket.socket) -> None:
        self._asked = set()
        wanted: set[str] = set()
        self._unconfirmed.clear()
        self._pinged = False
        heard = None  # the socket of the subscribed connection
        while True:
            rung = selector.select(PING_SECONDS if wanted else IDLE_SECONDS)
            if not pubsub.subscribed and any(key.fileobj is heard for key, _ in rung):
                raise exceptions.ConnectionError("the server hung up")  # nobody listens: it has nothing else to say
            with suppress(BlockingIOError):
                bell.recv(4096)
            with self._lock:
                wanted = set(self._ears)
                if self._closing or not (wanted or rung):
                    self._end()
                    return
                old, new = self._asked - wanted, wanted - self._asked
                if len(old) < LEFTOVERS:
                    old = set()
                self._subscribed -= old
            if not rung:
                self._ping(pubsub)
            if old:
                pubsub.unsubscribe(*old)
            if new:
                pubsub.subscribe(*new)
                self._unconfirmed.update(new)
            self._asked = self._asked - old | new
            while pubsub.subscribed and (message := pubsub.get_message(timeout=0)):
                self._hear(message)
            now = getattr(pubsub.connection, "_sock", None)
            if heard is None and now is not None:
                heard = now
                selector.register(heard, selectors.EVENT_READ)
            if now is not heard:  # the client has connected anew: messages may have passed unheard
                raise exceptions.ConnectionError("the subscribed connection was lost")

    def _ping(self, pubsub: Any) -> None:
        """Make sure that nothing was heard because nothing was said: a frozen server does not hang up."""
        if self._pinged:
            raise exceptions.ConnectionError("the server says nothing any more")
        if pubsub.subscribed:
            self._pinged = True
            pubsub.ping()

    def _hear(self, message: dict[str, Any]) -> None:
        self._pinged = False
        if message["type"] == "pong":
            return
        key = message["channel"].decode()
        with self._lock:
            ears = self._ears.get(key, ())
            if message["type"] == "subscribe":
                self._unconfirmed[key] -= 1
                if self._unconfirmed[key] > 0:  # this one was undone and asked for again
                    return
                del self._unconfirmed[key]
                if key not in self._asked:  # it has been undone since
                    return
                self._subscribed.add(key)
                for ear in ears:
                    ear.ready.set()
            elif message["type"] == "message":
                for ear in ears:
                    ear.changed.set()

    def _end(self) -> None:
        """The thread is about to end: nobody hears any more; hold the lock."""
        self._running, self._subscribed, self._closing = False, set(), False
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        for ears in self._ears.values():
            for ear in ears:
                ear.hears = False
                ear.ready.set()
                ear.changed.set()
