"""Wake-up latency of one waiting request and of forty in four processes, and what they cost Redis and the others."""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.servers.standalone import RedisProcess

from .. import ours, wsgi
from ..requests import View, key
from ..results import write
from ..table import Cell, markdown, median, p99
from .crowd import APP, PATIENCE, Crowd

TITLE = "Waiting for a running request"
PROCESSES, THREADS = 4, 10
CROWDS = (0, 1, PROCESSES * THREADS)
SETTLE_SECONDS = 0.1  # until those who were sent are waiting
COMMANDS = ("evalsha", "eval", "subscribe", "unsubscribe")  # what clients send; the rest is called by scripts
HEADS = ("store", "waiting", "wake-up ms", "aim", "p99 ms", "aim", "commands each", "aim", "completion us")
EXPLANATION = """
Requests with `wait` for one that runs in another process; {rounds} rounds each, in turns. *Wake-up* is the time from
the return of the view to a waiting request's whole answer, *commands* what each of them asked Redis beyond its claim,
and *completion* the time from the return of the view to the end of the request that ran it.
"""


class Held(View):
    """Runs until it is let go, and notes when it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.go = threading.Event(), threading.Event()
        self.returned = 0.0

    def __call__(self, order: dict[str, Any]) -> dict[str, str]:
        """Run once more."""
        answer = super().__call__(order)
        self.began.set()
        if not self.go.wait(PATIENCE):
            raise RuntimeError("the view was not let go")
        self.returned = time.monotonic()
        return answer


@dataclass
class Measured:
    """What was measured with one number of waiting requests, in seconds and commands."""

    wakeups: list[float] = field(default_factory=list)
    completions: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)


def main() -> None:
    """Measure each store, write the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.waiting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="rounds for each number of waiting requests (60)")
    options = parser.parse_args()
    rows: list[list[Cell]] = []
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory)).start()
        try:
            for name, settings in _stores(server, directory):
                rows += _rows(name, _measure(settings, server, options.rounds))
        finally:
            server.stop()
    write(TITLE, f"{EXPLANATION.format(rounds=options.rounds)}\n{markdown(HEADS, rows)}")


def _stores(server: RedisProcess, directory: str) -> Iterator[tuple[str, dict[str, Any]]]:
    base = {"CACHE_REDIS_URL": server.url, "WAIT": PATIENCE, "STORE_TIMEOUT": 5}
    yield "Redis alone", base | {"LOCAL_TIER": None, "ON_OUTAGE": "reject", "KEY_PREFIX": "alone:"}
    yield "memory tier before Redis", base | {"LOCAL_TIER": "memory", "KEY_PREFIX": "memory:"}
    shared = base | {"LOCAL_TIER": "shared", "SHARED_PATH": f"{directory}/records", "KEY_PREFIX": "shared:"}
    yield "shared tier before Redis", shared


def _measure(settings: dict[str, Any], server: RedisProcess, rounds: int) -> dict[int, Measured]:
    measured: dict[int, Measured] = defaultdict(Measured)
    view = Held()
    app = ours.guarded(view, APP, settings)
    assert app is not None
    send, client = wsgi.sender(app), redis.Redis(port=server.port, protocol=2)
    crowd = Crowd(settings, PROCESSES, THREADS)
    turns = [count for count in CROWDS for _ in range(rounds + 1)]
    random.Random(0).shuffle(turns)
    try:
        for n, count in enumerate(turns):
            _round(key(n), count, view, send, crowd, client, measured[count])
    finally:
        crowd.close()
        app.extensions["idempotency"].close(app)
    return measured


def _round(
    name: str, count: int, view: Held, send: wsgi.Send, crowd: Crowd, client: redis.Redis, into: Measured
) -> None:
    view.began.clear()
    view.go.clear()
    ended: list[float] = []
    first = threading.Thread(target=lambda: (send(name), ended.append(time.monotonic())))
    first.start()
    if not view.began.wait(PATIENCE):
        raise RuntimeError("the view did not begin")
    before = _commands(client)
    if count:
        crowd.send(name, count)
    time.sleep(SETTLE_SECONDS)
    view.go.set()
    first.join()
    into.completions.append(ended[0] - view.returned)
    if count:
        into.wakeups += [instant - view.returned for instant in crowd.answered()]
        sent = _commands(client) - before - 1  # the one that completed
        into.commands.append(sent / count - 1)  # each waiting one began with a claim


def _commands(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return sum(stats[f"cmdstat_{name}"]["calls"] for name in COMMANDS if f"cmdstat_{name}" in stats)


def _rows(store: str, measured: dict[int, Measured]) -> Iterator[list[Cell]]:
    aims: dict[int, tuple[Cell, ...]] = {0: (None, None, None), 1: (2.0, None, 3.0), CROWDS[-1]: (None, 20.0, 3.0)}
    for count, found in sorted(measured.items()):
        soon, late, few = aims[count]
        wakeups = [1000 * seconds for seconds in found.wakeups]
        yield [
            store,
            str(count),
            median(wakeups) if wakeups else None,
            soon,
            p99(wakeups) if wakeups else None,
            late,
            median(found.commands) if wakeups else None,
            few if wakeups else None,
            1e6 * median(found.completions),
        ]


if __name__ == "__main__":
    main()
