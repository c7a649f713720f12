"""The thread that carries events to the endpoints, again and again until each has taken them."""

from __future__ import annotations

import heapq
import http.client
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

from .webhooks import Endpoint, address, signature

log = logging.getLogger(__name__)

WORKERS = 8  # deliveries under way at once
TICK = 0.25  # seconds
TIMEOUT = 10.0  # seconds that an endpoint may take to answer
LONGEST = 64  # the wait between two deliveries grows to so many times the first one


@dataclass(frozen=True)
class Delivery:
    """An event on its way to an endpoint.

    :ivar body: the event as JSON.
    :ivar number: 1 for the first try.
    """

    event_id: str
    kind: str
    body: bytes
    endpoint: Endpoint
    number: int = 1


@dataclass(frozen=True)
class Attempt:
    """One try to deliver an event, and the HTTP status that came back; None when nothing did."""

    event_id: str
    kind: str
    url: str
    status: int | None

    @property
    def taken(self) -> bool:
        """Whether the endpoint has taken the event: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


class Courier:
    """Delivers events, each anew after a wait that doubles, until the endpoint answers 2xx or the courier stops."""

    def __init__(
        self,
        *,
        first_wait: float,
        done: Callable[[Delivery, Attempt], None],
        wanted: Callable[[Endpoint], bool],
        tick: Callable[[], object],
    ) -> None:
        """Carry nothing yet.

        :param first_wait: seconds before the second try.
        :param done: told of each try.
        :param wanted: whether an endpoint is still there.
        :param tick: called every quarter of a second.
        """
        self._first_wait = first_wait
        self._done = done
        self._wanted = wanted
        self._tick = tick
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Delivery]] = []
        self._order = itertools.count()
        self._connections: set[http.client.HTTPConnection] = set()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Carry from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Break off what is under way, and end the thread. Safe to repeat, and before the start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            for connection in self._connections:
                _break(connection)
        if self._thread.is_alive():
            self._thread.join()

    def put(self, delivery: Delivery, wait: float = 0.0) -> None:
        """Deliver after so many seconds."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + wait, next(self._order), delivery))
            self._changed.notify_all()

    def _run(self) -> None:
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="webhook") as pool:
            while not self._closing:
                for delivery in self._next():
                    pool.submit(self._deliver, delivery)
                self._tick()

    def _next(self) -> list[Delivery]:
        """What is due by now; waits for it, for one tick at most."""
        with self._changed:
            now = time.monotonic()
            until = min(self._due[0][0] if self._due else now + TICK, now + TICK)
            if until > now and not self._closing:
                self._changed.wait(until - now)
            now, taken = time.monotonic(), []
            while self._due and self._due[0][0] <= now and not self._closing:
                taken.append(heapq.heappop(self._due)[2])
            return taken

    def _deliver(self, delivery: Delivery) -> None:
        if not self._wanted(delivery.endpoint):
            return
        attempt = Attempt(delivery.event_id, delivery.kind, delivery.endpoint.url, self._post(delivery))
        if self._closing:
            return
        if not attempt.taken:
            log.info("webhook %s: %s to %s", attempt.status, delivery.kind, attempt.url)
            wait = self._first_wait * min(2 ** (delivery.number - 1), LONGEST)
            self.put(replace(delivery, number=delivery.number + 1), wait)
        self._done(delivery, attempt)

    def _post(self, delivery: Delivery) -> int | None:
        """Send a delivery; the status of the answer, or None when there is none."""
        parts = address(delivery.endpoint.url)
        path = f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(delivery.body, delivery.endpoint.secret, time.time()),
            "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
        }
        connection = http.client.HTTPConnection(parts.netloc, timeout=TIMEOUT)
        try:
            with self._changed:
                if self._closing:
                    return None
                self._connections.add(connection)
            connection.request("POST", path, delivery.body, headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()


def _break(connection: http.client.HTTPConnection) -> None:
    if isinstance(connection.sock, socket.socket):
        with suppress(OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)
