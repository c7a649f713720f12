"""What the guard adds to a view, beside the floor and beside other packages.

Apps are called directly, with a prebuilt environ or ASGI scope; what a guard adds is the time of the guarded view less
the time of the same view without a guard, both in medians over rounds in which every call takes its turn. A worker
serves one app, so each guard takes turns with the floor and its own bare view alone, and not with twenty other apps,
which would leave the caches cold for all of them.
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
from .requests import Send, View, key
from .results import write
from .subject import REPLAYED, Subject
from .table import Cell, markdown, median, p99

TITLE = "What the guard adds to a view"
GET = "one redis-py GET"
SOCKET = "one GET over a raw socket"
BARE, FIRST, REPLAY = "bare view", "first run", "replay"
Run = dict[str, dict[str, list[float]]]  # microseconds of each call in its turns, by the guard that took them
HEADS = ("what", "adds us", "x GET, run by run", "aim", "p99 us", "the view's own", "p99 / median", "round trips")
EXPLANATION = """
JSON body of 200 bytes in, another for each key, which the view parses, and 300 out; Redis on loopback TCP. *Adds* is
the median of the guarded view less the median of the same view bare; *p99* is the guarded view's 99th percentile less
the same, and *the view's own* is the bare view's 99th percentile less it: what is there without a guard. In each of
{runs} runs every guard takes {rounds} turns: first run, replay, bare view and the two floors, one by one in changing
order; *x GET* is the ratio to the GET of the same turns. ASGI peers are compared with a bare ASGI view, on a loop that
runs already.
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
    floors: dict[str, Call] = {GET: floor.redis_py(server), SOCKET: floor.raw_socket(server)}
    makers = {"WSGI": wsgi.bare, "ASGI": asgi.bare}
    bare = {interface: makers[interface](View()) for interface in {subject.interface for subject in subjects}}
    turns = {subject.name: floors | _calls(subject, bare[subject.interface]) for subject in subjects}
    for calls in turns.values():
        take_turns(calls, rounds // 5)  # to warm up
    measured = [{name: take_turns(calls, rounds) for name, calls in turns.items()} for _ in range(runs)]
    client = redis.Redis(port=server.port, protocol=2)
    trips = {(name, what): round_trips(client, call) for name, calls in turns.items() for what, call in calls.items()}
    table = markdown(HEADS, _rows(subjects, measured, trips))
    return f"{EXPLANATION.format(rounds=rounds, runs=runs)}\n{table}\n\n{_missing()}"


def _calls(subject: Subject, bare: Send) -> dict[str, Call]:
    return {
        BARE: lambda n: bare(key(n)),
        FIRST: lambda n: subject.send(key(n)),
        REPLAY: lambda _: subject.send(REPLAYED),
    }


def _pooled(measured: list[Run], names: list[str], what: str) -> list[list[float]]:
    """The times of one call in each run, whichever guard it took turns with."""
    return [[time for name in names for time in run[name][what]] for run in measured]


def _rows(subjects: list[Subject], measured: list[Run], trips: dict[tuple[str, str], float]) -> Iterator[list[Cell]]:
    everyone = [subject.name for subject in subjects]
    for what in (GET, SOCKET):
        times = _pooled(measured, everyone, what)
        yield _row(what, times, _pooled(measured, everyone, GET), None, trips[everyone[0], what])
    for interface in dict.fromkeys(subject.interface for subject in subjects):
        names = [subject.name for subject in subjects if subject.interface == interface]
        times, gets = _pooled(measured, names, BARE), _pooled(measured, names, GET)
        yield _row(f"{BARE}, {interface}: all of it", times, gets, None, 0)
    for subject in subjects:
        turns = [run[subject.name] for run in measured]
        for what, aim in ((FIRST, subject.first_target), (REPLAY, subject.replay_target)):
            added = [[time - median(each[BARE]) for time in each[what]] for each in turns]
            own = [[time - median(each[BARE]) for time in each[BARE]] for each in turns]
            name, gets = f"{subject.name}: {what}", [each[GET] for each in turns]
            yield _row(name, added, gets, aim, trips[subject.name, what], p99(_all(own)))


def _row(
    name: str,
    added: list[list[float]],
    gets: list[list[float]],
    aim: float | None,
    trips: float,
    own: float | None = None,
) -> list[Cell]:
    ratios = [f"{median(times) / median(get):.2f}" for times, get in zip(added, gets, strict=True)]
    middle, slow = median(_all(added)), p99(_all(added))
    return [name, middle, " / ".join(ratios), aim, slow, own, slow / middle, trips]


def _all(runs: list[list[float]]) -> list[float]:
    return [time for times in runs for time in times]


def _missing() -> str:
    missing = sorted(peers.PEERS.keys() - peers.installed().keys())
    return f"Not installed (`pip install -r bench/peers.txt`): {', '.join(missing)}." if missing else ""


if __name__ == "__main__":
    main()
