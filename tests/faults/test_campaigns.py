"""Every campaign in short. ``make faults`` plays them at length."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from .campaigns import CAMPAIGNS
from .play import play
from .report import details, summary

pytestmark = pytest.mark.redis

REQUESTS = 400
RATE = 120.0
PACE = 0.6
PLAYS = [(name, policy) for name, campaign in CAMPAIGNS.items() for policy in campaign.policies]


@pytest.mark.parametrize(("name", "policy"), PLAYS, ids=["-".join(each) for each in PLAYS])
def test_nothing_runs_twice_and_nothing_is_lost(name: str, policy: str, tmp_path: Path):
    seed = zlib.crc32(f"{name} {policy}".encode())  # the same schedule each time; `make faults` draws others
    played = play(CAMPAIGNS[name], policy, tmp_path, seed=seed, requests=REQUESTS, rate=RATE, pace=PACE)
    print(summary(played))
    assert played.evidence.faults, "nothing went wrong"
    assert len({answer.key for answer in played.evidence.answers if answer.done}) > REQUESTS / 10
    if played.verdict.findings:
        pytest.fail(f"{summary(played)}\n{details(played)}", pytrace=False)
