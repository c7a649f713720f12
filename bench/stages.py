"""Where the time of a guarded request goes: Flask, the guard's own parts, and what it waits for."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask_idempotent import decorator, web
from flask_idempotent.core import guard
from flask_idempotent.core.lease import Heartbeat
from flask_idempotent.stores.local import LocalStore
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.shared import SharedStore
from flask_idempotent.stores.tiered import TieredStore
from flask_idempotent.stores.wire import Wire
from tests.servers.standalone import RedisProcess

from . import floor, ours, wsgi
from .measure import Call, take_turns
from .requests import View, key
from .results import write
from .subject import REPLAYED, Subject
from .table import markdown, median

TITLE = "Where the time goes"
FLASK = "Flask, Werkzeug and the view"
WAITING = "waiting for Redis"
PARTS: dict[str, list[tuple[Any, str]]] = {
    FLASK: [(decorator._Execution, "_respond")],
    "decorator": [(decorator, "_answer")],
    "key, scope and fingerprint": [(web, "read")],
    "claim, lease and verdict": [
        (decorator, "begin"),
        (guard.Guard, "_end"),
        (Heartbeat, "add"),
        (Heartbeat, "discard"),
    ],
    "outcome packed": [(web, "stored_headers"), (guard, "pack_payload"), (guard.Guard, "finish")],
    "response of a replay": [(web, "replay")],
    "local tier": [(LocalStore, "claim"), (LocalStore, "complete"), (SharedStore, "complete_early")],
    "both tiers kept in step": [(TieredStore, "claim"), (TieredStore, "complete")],
    "client of Redis": [(RedisStore, "claim"), (RedisStore, "complete")],
}
EXPLANATION = """
Microseconds of one request by part, medians over {rounds} rounds, each part without those that it calls; the clock
itself takes some {clock:.1f} us for each. *Waiting for Redis* is the time in the socket's `sendall` and `recv`, which
for a GET over a raw socket is {raw:.0f} us in the same run; one GET by redis-py takes {get:.0f} in all, a bare view
{bare:.0f}.
"""


class Clock:
    """Adds up the time of each part, to the exclusion of the parts that are called meanwhile."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = defaultdict(int)  # nanoseconds
        self._running: list[str] = []
        self._since = 0

    def on(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed as that part."""

        def timed(*args: Any, **options: Any) -> Any:
            self._turn()
            self._running.append(part)
            try:
                return function(*args, **options)
            finally:
                self._turn()
                self._running.pop()

        return timed

    def _turn(self) -> None:
        now = time.perf_counter_ns()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now


class TimedSocket:
    """A connected socket whose waiting is timed.

    :param inner: the socket.
    """

    def __init__(self, inner: Any, clock: Clock) -> None:
        self.sendall = clock.on(WAITING, inner.sendall)
        self.recv = clock.on(WAITING, inner.recv)


def main() -> None:
    """Start a Redis, measure, write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.stages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1500, help="rounds (1500)")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory)).start()
        try:
            write(TITLE, _section(server, rounds))
        finally:
            server.stop()


def _section(server: RedisProcess, rounds: int) -> str:
    bare = wsgi.bare(View())
    floors: dict[str, Call] = {
        "raw": floor.raw_socket(server), "get": floor.redis_py(server), "bare": lambda n: bare(key(n)),
    }  # fmt: skip
    columns: dict[str, dict[str, float]] = {}
    beside: dict[str, list[float]] = defaultdict(list)
    for subject in ours.subjects(server):
        clock = Clock()
        with _timed(clock):
            times, found = _measured(subject, clock, floors, rounds)
        columns |= found
        for name in floors:
            beside[name] += times[name]
    told = {name: median(each) for name, each in beside.items()}
    rows = [[part, *(column.get(part) for column in columns.values())] for part in (*PARTS, WAITING)]
    rows.append(["all of it", *(sum(column.values()) for column in columns.values())])
    text = EXPLANATION.format(rounds=rounds, clock=_cost(), **told)
    return f"{text}\n{markdown(['part', *columns], rows)}"


def _measured(
    subject: Subject, clock: Clock, floors: dict[str, Call], rounds: int
) -> tuple[dict[str, list[float]], dict[str, dict[str, float]]]:
    """The times of the floors, and the medians of each part for a first run and a replay."""
    name = subject.name.removeprefix("ours: ").removesuffix(" before Redis").removesuffix(" alone")
    seen: dict[str, list[dict[str, int]]] = {f"{name}, first run": [], f"{name}, replay": []}
    send = clock.on(FLASK, subject.send)

    def call(kind: str, sent: str) -> None:
        clock.spent = defaultdict(int)
        send(sent)
        seen[kind].append(clock.spent)

    first, replay = seen
    subject.send(REPLAYED)
    calls: dict[str, Call] = {**floors, first: lambda n: call(first, key(n)), replay: lambda _: call(replay, REPLAYED)}
    take_turns(calls, rounds // 5)  # to warm up
    for each in seen.values():
        each.clear()
    times = take_turns(calls, rounds)
    return times, {kind: _medians(each) for kind, each in seen.items()}


def _medians(seen: list[dict[str, int]]) -> dict[str, float]:
    parts = {part for spent in seen for part in spent}
    return {part: median([spent.get(part, 0) / 1000 for spent in seen]) for part in parts}


@contextmanager
def _timed(clock: Clock) -> Iterator[None]:
    """All parts timed."""
    opened = Wire.__init__

    def open_(wire: Wire, connection: Any) -> None:
        opened(wire, connection)
        wire._socket = TimedSocket(wire._socket, clock)

    with ExitStack() as patches:
        patches.enter_context(patch.object(Wire, "__init__", open_))
        for part, functions in PARTS.items():
            for owner, name in functions:
                patches.enter_context(patch.object(owner, name, clock.on(part, getattr(owner, name))))
        yield


def _cost() -> float:
    """Microseconds that timing takes for each call of a part."""
    clock = Clock()
    timed = clock.on("nothing", lambda: None)
    began = time.perf_counter_ns()
    for _ in range(10_000):
        timed()
    return (time.perf_counter_ns() - began) / 10_000 / 1000


if __name__ == "__main__":
    main()
