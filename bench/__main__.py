"""What the guard adds to a view, beside the floor and beside other packages.

Apps are called directly, with a prebuilt environ or ASGI scope; what a guard adds is the time of the guarded view less
the time of the same view without a guard, both in medians over rounds in which every call takes its turn.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.servers.standalone import RedisProcess

from . import asgi, floor, ours, peers, wsgi
from .measure import Call, round_trips, take_turns
from .requests import View, key
from .results import write
from .subject import REPLAYED, Subject
from .table import Cell, markdown, median, p99

TITLE = "What the guard adds to a view"
GET = "one redis-py GET"
SOCKET = "one GET over a raw socket"
HEADS = ("what", "adds us", "x GET, run by run", "aim", "p99 us", "p99 / median", "round trips")
EXPLANATION = """
JSON body of 200 bytes in, which the view parses, and 300 out; Redis on loopback TCP. *Adds* is the median of the
guarded view less the median of the same view bare; *p99* is the guarded view's 99th percentile less the same.
{rounds} rounds of turns in each of {runs} runs. The bare views: {bare}. ASGI peers are compared with a bare ASGI view,
on a loop that runs already.
"""


def main() -> None:
    """Start a Redis, measure, write the table."""
    options = _options()
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory)).start()
        try:
            write(TITLE, _measured(server, options.runs, options.rounds), "flask-caching", *peers.installed())
        finally:
            server.stop()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="how many runs in a row (3)")
    parser.add_argument("--rounds", type=int, default=1000, help="rounds in each run (1000)")
    return parser.parse_args()


def _measured(server: RedisProcess, runs: int, rounds: int) -> str:
    subjects = [*ours.subjects(server), *peers.subjects(server)]
    for subject in subjects:
        subject.check()
    bare = _bare(subjects)
    calls: dict[str, Call] = {GET: floor.redis_py(server), SOCKET: floor.raw_socket(server), **bare}
    for subject in subjects:
        calls |= _pair(subject)
    take_turns(calls, rounds // 5)  # to warm up
    measured = [take_turns(calls, rounds) for _ in range(runs)]
    client = redis.Redis(port=server.port, protocol=2)
    trips = {name: round_trips(client, call) for name, call in calls.items()}
    shown = ", ".join(f"{name} {median([t for times in measured for t in times[name]]):.0f} us" for name in bare)
    table = markdown(HEADS, _rows(subjects, measured, trips))
    return f"{EXPLANATION.format(rounds=rounds, runs=runs, bare=shown)}\n{table}\n\n{_missing()}"


def _bare(subjects: list[Subject]) -> dict[str, Call]:
    makers = {"WSGI": wsgi.bare, "ASGI": asgi.bare}
    sends = {name: make(View()) for name, make in makers.items() if any(each.interface == name for each in subjects)}
    return {name: (lambda n, send=send: send(key(n))) for name, send in sends.items()}  # type: ignore[misc]


def _pair(subject: Subject) -> dict[str, Call]:
    return {
        f"{subject.name}: first run": lambda n: subject.send(key(n)),
        f"{subject.name}: replay": lambda _: subject.send(REPLAYED),
    }


def _rows(
    subjects: list[Subject], measured: list[dict[str, list[float]]], trips: dict[str, float]
) -> Iterator[list[Cell]]:
    for name in (GET, SOCKET):
        yield _row(name, None, measured, None, trips[name])
    for subject in subjects:
        for kind, aim in (("first run", subject.first_target), ("replay", subject.replay_target)):
            name = f"{subject.name}: {kind}"
            yield _row(name, subject.interface, measured, aim, trips[name])


def _row(
    name: str, bare: str | None, measured: list[dict[str, list[float]]], aim: float | None, trips: float
) -> list[Cell]:
    def added(times: dict[str, list[float]]) -> list[float]:
        without = median(times[bare]) if bare else 0.0
        return [time - without for time in times[name]]

    ratios = [f"{median(added(times)) / median(times[GET]):.2f}" for times in measured]
    everything = [time for times in measured for time in added(times)]
    middle, slow = median(everything), p99(everything)
    return [name, middle, " / ".join(ratios), aim, slow, slow / middle, trips]


def _missing() -> str:
    missing = sorted(peers.PEERS.keys() - peers.installed().keys())
    return f"Not installed (`pip install -r bench/peers.txt`): {', '.join(missing)}." if missing else ""


if __name__ == "__main__":
    main()
