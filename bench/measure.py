"""Measuring on a machine that others use as well: calls take turns, and gaps between them are not counted."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from redis import Redis

Call = Callable[[int], object]  # does the thing for the n-th time

COLLECT_EVERY = 100  # rounds
_rounds = count(1)


def take_turns(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each call in each round.

    Every round does each call once, in an order of its own, so that a change of the machine's speed meets all alike
    and none always follows the same other. Garbage is collected between rounds.

    :param calls: by name; the number that each gets never comes twice.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, order = list(calls), random.Random(0)
    with _no_collection() as collect:
        for turn in range(rounds):
            if turn % COLLECT_EVERY == 0:
                collect()
            order.shuffle(names)
            n = next(_rounds)
            for name in names:
                call = calls[name]
                began = time.perf_counter_ns()
                call(n)
                times[name].append((time.perf_counter_ns() - began) / 1000)
    return times


def round_trips(client: Redis, call: Call, times: int = 20) -> float:
    """How many questions to Redis a call costs, counted by the server as reads from its sockets.

    (``total_commands_processed`` counts the commands inside of scripts as well.)
    """
    counts = []
    for _ in range(times):
        before = _reads(client)
        call(next(_rounds))
        counts.append(_reads(client) - before - 1)  # one read was for the question itself
    return statistics.median(counts)  # what threads in the background ask now and then does not count


def server_cpu(client: Redis) -> float:
    """Seconds of processor time that a server has used."""
    used = client.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


def _reads(client: Redis) -> int:
    return int(client.info("stats")["total_reads_processed"])


@contextmanager
def _no_collection() -> Iterator[Callable[[], object]]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()
        gc.unfreeze()
