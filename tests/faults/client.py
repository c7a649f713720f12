"""The clients of a campaign: a process with connections that stay open, and retries as a client should make them.

``python -m tests.faults.client JSON``, see :class:`Traffic`.
"""

from __future__ import annotations

import hashlib
import heapq
import http.client
import itertools
import json
import queue
import random
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from .evidence import GIVEN_UP, NO_ANSWER, Answer, Lines
from .plan import LATER_SECONDS, Send, plan

BROKEN_SECONDS: Final = (0.05, 0.3)  # before another try where the connection broke
LONGEST_WAIT: Final = 1.0  # of what Retry-After says
CHANGE: Final = 0.1  # of the requests are followed by a new connection, which another worker may accept
PATH: Final = "/work"


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the process is told.

    :param seed: of the plan.
    :param rate: requests that are due in a second.
    :param ports: of the hosts.
    :param names: of the hosts.
    :param answers: the file for the answers.
    :param patience: seconds for which a request is repeated until it is given up.
    :param later: seconds within which the requests with a key are made.
    :param timeout: seconds without an answer after which a connection counts as broken.
    """

    seed: int
    requests: int
    rate: float
    ports: list[int]
    names: list[str]
    answers: str
    patience: float
    timeout: float
    later: float = LATER_SECONDS
    threads: int = 16


class Connection:
    """One thread's connections, one to each host."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._open: dict[int, http.client.HTTPConnection] = {}

    def post(self, host: int, headers: dict[str, str], body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """One request. After an error the connection is a new one."""
        port = self._traffic.ports[host]
        connection = self._open.get(host)
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=self._traffic.timeout)
            self._open[host] = connection
        try:
            connection.request("POST", PATH, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        except BaseException:
            self.drop(host)
            raise

    def drop(self, host: int) -> None:
        """Close the connection to a host."""
        connection = self._open.pop(host, None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        for host in list(self._open):
            self.drop(host)


def ask(connection: Connection, send: Send, tries: int, name: str) -> tuple[Answer, float]:
    """Make one request: what came of it, and the seconds to wait before another try; 0 when it is answered for good."""
    failing = send.fail and tries == 0
    headers = {"Idempotency-Key": send.key, "Content-Type": "application/json", "Work": f"{send.work:.4f}"}
    headers |= {"Fail": "yes"} if failing else {}
    headers |= {"Gate": send.gate} if send.gate else {}
    sent = time.monotonic()
    answer = Answer(send.key, send.number, tries, name, sent, sent, NO_ANSWER, fault=failing)
    try:
        got, body = connection.post(send.host, headers, json.dumps({"order": send.key}).encode())
    except (OSError, http.client.HTTPException) as error:
        wait = random.uniform(*BROKEN_SECONDS)
        return replace(answer, got=time.monotonic(), error=f"{type(error).__name__}: {error}"), wait
    answer = read(answer, got, body)
    return answer, _wait(answer, got)


def read(answer: Answer, got: http.client.HTTPResponse, body: bytes) -> Answer:
    """Fill in what was answered."""
    run = got.headers.get("Run", "")
    kept = f"{got.status} {got.headers.get('Content-Type')} {run} ".encode() + body
    return replace(
        answer,
        got=time.monotonic(),
        status=got.status,
        run=run,
        digest=hashlib.sha256(kept).hexdigest()[:16],
        pid=int(got.headers.get("Worker", 0)),
        took=float(got.headers.get("Took", 0)),
        replayed=got.headers.get("Idempotent-Replayed") == "true",
        degraded=got.headers.get("Idempotency-Degraded") == "true",
        error="" if run else _problem(body),
    )


def _problem(body: bytes) -> str:
    """What is wrong according to an answer that is none of the view's."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, LookupError, TypeError):
        return body.decode(errors="replace")[:200]


def _wait(answer: Answer, got: http.client.HTTPResponse) -> float:
    if answer.status in (409, 503):
        return min(float(got.headers.get("Retry-After", 0.1)), LONGEST_WAIT) * random.uniform(0.5, 1)
    return random.uniform(*BROKEN_SECONDS) if answer.status >= 500 else 0.0


@dataclass(frozen=True, slots=True, order=True)
class Due:
    """A request in the line.

    :param at: when it is to be made, in monotonic seconds.
    :param first: when it was made for the first time.
    """

    at: float
    number: int
    tries: int = field(compare=False)
    send: Send = field(compare=False)
    first: float = field(compare=False, default=0.0)


class Clients:
    """The threads that work off a plan. The calling one hands out what is due.

    :param sweep: whether these are the last requests of all, when the faults are over.
    """

    def __init__(self, traffic: Traffic, sends: list[Send], *, sweep: bool = False) -> None:
        self._traffic, self._sweep = traffic, sweep
        self._lines = Lines(Path(traffic.answers))
        self._numbers = itertools.count()
        self._left = len(sends)
        self._changed = threading.Condition()
        began = time.monotonic()
        self._line = [Due(began + send.due, next(self._numbers), 0, send) for send in sends]  # sorted, so it is a heap
        self._hands: queue.SimpleQueue[Due | None] = queue.SimpleQueue()

    def run(self) -> None:
        """Return when every request is answered for good or given up."""
        threads = [threading.Thread(target=self._work) for _ in range(self._traffic.threads)]
        for thread in threads:
            thread.start()
        while (due := self._next()) is not None:
            self._hands.put(due)
        for _ in threads:
            self._hands.put(None)
        for thread in threads:
            thread.join()
        self._lines.close()

    def _next(self) -> Due | None:
        """Wait for the next request that is due; None when all are over."""
        with self._changed:
            while self._left:
                wait = self._line[0].at - time.monotonic() if self._line else None
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._line)
                self._changed.wait(wait)
            return None

    def _work(self) -> None:
        connection = Connection(self._traffic)
        while (due := self._hands.get()) is not None:
            self._make(connection, due)
        connection.close()

    def _make(self, connection: Connection, due: Due) -> None:
        """Make a request, and put it into the line again where it was not answered for good."""
        answer, wait = ask(connection, due.send, due.tries, self._traffic.names[due.send.host])
        answer = replace(answer, sweep=self._sweep)
        self._lines.add(answer)
        if random.random() < CHANGE:
            connection.drop(due.send.host)
        first = due.first or answer.sent
        if wait and answer.got > first + self._traffic.patience:
            self._lines.add(replace(answer, status=GIVEN_UP, sent=answer.got, tries=due.tries + 1))
            wait = 0.0
        again = Due(answer.got + wait, next(self._numbers), due.tries + 1, due.send, first)
        with self._changed:
            if wait:
                heapq.heappush(self._line, again)
            else:
                self._left -= 1
            if not self._left or (wait and self._line[0] is again):
                self._changed.notify()


def main(argument: str) -> None:
    """Send the traffic that the argument describes."""
    given: dict[str, Any] = json.loads(argument)
    traffic = Traffic(**given)
    Clients(traffic, plan(traffic.seed, traffic.requests, traffic.rate, len(traffic.ports), traffic.later)).run()


if __name__ == "__main__":
    main(sys.argv[1])
