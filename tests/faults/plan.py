"""The traffic of a campaign, drawn from its seed: each key several times, some at once and some later."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

COPIES: Final = (2, 6)
AT_ONCE_SECONDS: Final = 0.03
SOON_SECONDS: Final = 1.0
LATER_SECONDS: Final = 6.0
SLOW: Final = 0.05  # of the keys, whose work takes SLOW_SECONDS
SLOW_SECONDS: Final = 0.2
WORK_SECONDS: Final = 0.03
FAILING: Final = 0.03  # of the keys, whose first request makes the view fail


@dataclass(frozen=True, slots=True)
class Send:
    """One request to be made, again and again until it is answered for good.

    :param due: seconds from the start of the traffic.
    :param host: the number of the host that gets it.
    :param work: seconds for which the view is to work.
    :param fail: whether the view is to fail, the first time that it is asked.
    :param gate: a file for which the view is to wait.
    """

    due: float
    key: str
    number: int
    host: int
    work: float
    fail: bool = False
    gate: str = ""


def plan(seed: int, requests: int, rate: float, hosts: int = 1, later: float = LATER_SECONDS) -> list[Send]:
    """The requests of a campaign in the order in which they are due.

    :param requests: how many; a few more, so that the last key gets all of its own.
    :param rate: how many are due in a second.
    :param later: seconds within which the last request with a key follows the first.
    """
    rng = random.Random(seed)
    sends: list[Send] = []
    begin, key = 0.0, 0
    while len(sends) < requests:
        copies = rng.randint(*COPIES)
        sends += _sends(rng, f"{seed:x}-{key}", copies, begin, hosts, later)
        begin += rng.expovariate(rate / copies)
        key += 1
    return sorted(sends, key=lambda send: send.due)


def _sends(rng: random.Random, key: str, copies: int, begin: float, hosts: int, later: float) -> list[Send]:
    """All requests with one key."""
    work = SLOW_SECONDS if rng.random() < SLOW else rng.uniform(0, WORK_SECONDS)
    fails = rng.random() < FAILING
    dues = [0.0, *(_later(rng, later) for _ in range(copies - 1))]
    return [
        Send(begin + due, key, number, rng.randrange(hosts), work, fails and number == 0)
        for number, due in enumerate(dues)
    ]


def _later(rng: random.Random, later: float) -> float:
    """How long after the first request another one is made."""
    span = rng.choices((AT_ONCE_SECONDS, SOON_SECONDS, later), (5, 2, 3))[0]
    return rng.uniform(0, span)
