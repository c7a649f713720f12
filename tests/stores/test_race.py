"""Many workers want one key: exactly one of them gets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claimed, Found

from ..servers.standalone import RedisProcess
from .conftest import Place
from .making import KEY, PAST, TTL, at_once, claim_of, payload_of, record_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("before", "attempt"),
    [(None, 1), (record_of(State.PENDING, deadline=PAST), 2), (record_of(State.FAILED, attempt=6), 7)],
    ids=["new", "lapsed", "failed"],
)
@pytest.mark.parametrize("stores", ["one", "two"])
def test_of_fifty_threads_one_gets_the_key(place: Place, before: bytes | None, attempt: int, stores: str) -> None:
    workers = [place.store, place.elsewhere if stores == "two" else place.store]
    for round_ in range(4):
        key = f"{KEY}{round_}"
        if before is not None:
            place.elsewhere.set(key, before, TTL)
        claims = [claim_of(os.urandom(16), key) for _ in range(50)]
        answers = at_once([partial(workers[i % 2].claim, claim) for i, claim in enumerate(claims)])

        winners = [i for i, answer in enumerate(answers) if isinstance(answer, Claimed)]
        assert len(winners) == 1
        assert answers[winners[0]] == Claimed(attempt)
        owners = {read_head(answer.record).owner for answer in answers if isinstance(answer, Found)}
        assert claims[winners[0]].owner in owners
        stands = place.elsewhere.get(key)
        assert stands is not None
        assert read_head(stands).owner == claims[winners[0]].owner


def test_of_fifty_threads_with_one_token_all_hold_it(place: Place) -> None:
    assert at_once([partial(place.store.claim, claim_of()) for _ in range(50)]) == [Claimed(1)] * 50


def test_only_one_ending_of_a_request_stands(place: Place) -> None:
    for round_ in range(10):
        mine = claim_of(key=f"{KEY}{round_}")
        place.store.claim(mine)
        completed, failed = at_once(
            [partial(place.store.complete, mine, payload_of(mine), TTL), partial(place.store.fail, mine)]
        )
        stands = place.elsewhere.get(mine.key)
        assert stands is not None
        assert (completed, failed, read_head(stands).state) in [
            (True, False, State.DONE),
            (False, True, State.FAILED),
        ]


@pytest.mark.redis
@pytest.mark.parametrize("kind", ["redis", "tiered"])
def test_of_two_processes_one_gets_each_key(redis_server: RedisProcess, kind: str) -> None:
    rounds = 150
    command = [sys.executable, "-m", "tests.stores.racer", str(redis_server.port), kind, str(rounds)]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        won = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sorted(won[0] + won[1]) == list(range(rounds))
