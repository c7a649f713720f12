"""Plays a campaign: the clients on one side, the faults on the other, and a last look at everything in the end."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ..servers.process import ServerProcess, until
from .campaigns import CLIENT_TIMEOUT, STORE_TIMEOUT, Campaign
from .checker import Verdict, check
from .client import Clients, Traffic
from .evidence import Evidence, read_evidence
from .host import ROOT, Host
from .measures import Measures, measure
from .plan import LATER_SECONDS, Send
from .world import World

PATIENCE_SECONDS: Final = 120.0  # long enough for any request to meet a calm between two outages
SWEPT: Final = 3000  # keys that are asked for again in the end, at most
PROGRESS_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Play:
    """What was played, and what came of it."""

    campaign: Campaign
    policy: str
    seed: int
    seconds: float
    evidence: Evidence
    verdict: Verdict
    measures: Measures


class ClientProcess(ServerProcess):
    """The clients, in a process of their own: they must not take turns with what causes the faults."""

    def __init__(self, directory: Path, traffic: Traffic) -> None:
        command = [sys.executable, "-m", "tests.faults.client", json.dumps(asdict(traffic))]
        super().__init__(directory, command, {**os.environ, "PYTHONPATH": str(ROOT)})


def play(
    campaign: Campaign,
    policy: str,
    directory: Path,
    *,
    seed: int,
    requests: int,
    rate: float,
    tier: str = "shared",
    workers: int | None = None,
    threads: int | None = None,
    pace: float = 1.0,
    say: Callable[[str], None] = lambda _line: None,
) -> Play:
    """Play a campaign and judge it.

    :param directory: a new one, for everything that is left behind.
    :param requests: that are planned; repetitions after a refusal come on top.
    :param rate: planned requests a second.
    :param tier: the local one.
    :param workers: of each host, instead of the campaign's.
    :param threads: of each worker, instead of the campaign's.
    :param pace: by what the length of faults, and of the calm between them, is multiplied.
    :param say: is told of the progress.
    """
    settings = campaign.settings(policy, tier)
    site = replace(campaign.site, settings=settings)
    site = replace(site, workers=workers or site.workers, threads=threads or site.threads)
    began = time.monotonic()
    with World(site, directory, pace) as world:
        traffic = _traffic(world, seed, requests, rate)
        _play_faults(campaign, world, traffic, say)
        world.await_recovery()
        world.hosts.append(world.new_host("fresh"))
        _sweep(world, traffic)
    evidence = read_evidence(directory)
    verdict = check(evidence, campaign.rules(policy))
    return Play(campaign, policy, seed, time.monotonic() - began, evidence, verdict, measure(evidence, STORE_TIMEOUT))


def _traffic(world: World, seed: int, requests: int, rate: float) -> Traffic:
    return Traffic(
        seed=seed,
        requests=requests,
        rate=rate,
        ports=[host.port for host in world.hosts],
        names=[host.name for host in world.hosts],
        answers=str(world.directory / "answers"),
        patience=PATIENCE_SECONDS,
        timeout=CLIENT_TIMEOUT,
        later=LATER_SECONDS * world.pace,
    )


def _play_faults(campaign: Campaign, world: World, traffic: Traffic, say: Callable[[str], None]) -> None:
    """Cause faults until the clients have all their answers."""
    rng = random.Random(traffic.seed)
    home = world.directory / "clients"
    home.mkdir()
    clients = ClientProcess(home, traffic)
    clients.launch()
    try:
        deadline = time.monotonic() + 5 * traffic.requests / traffic.rate + 2 * PATIENCE_SECONDS
        progress = Progress(Path(traffic.answers), say)
        while clients.running and time.monotonic() < deadline:
            time.sleep(world.pace * rng.uniform(*campaign.gap))
            rng.choice(campaign.faults)(world, rng)
            progress.tell()
        until(lambda: not clients.running, "the end of the traffic", 1 + max(deadline - time.monotonic(), 0))
        assert clients.returncode == 0, clients.log.read_text()
    finally:
        clients.stop()


class Progress:
    """Counts the answers now and then."""

    def __init__(self, answers: Path, say: Callable[[str], None]) -> None:
        self._answers, self._say = answers, say
        self._began = self._last = time.monotonic()
        self._read = self._count = 0

    def tell(self) -> None:
        """Say how far it is, when that was not said for a while."""
        now = time.monotonic()
        if now < self._last + PROGRESS_SECONDS or not self._answers.exists():
            return
        self._last = now
        with self._answers.open("rb") as lines:
            lines.seek(self._read)
            new = lines.read()
        self._read, self._count = self._read + len(new), self._count + new.count(b"\n")
        self._say(f"  {self._count} answers after {now - self._began:.0f} s")


def _sweep(world: World, traffic: Traffic) -> None:
    """Ask every host again for what was answered, and a new one that knows nothing but what is in Redis."""
    done = {answer.key for answer in read_evidence(world.directory).answers if answer.done}
    keys = sorted(done)
    random.Random(traffic.seed).shuffle(keys)
    numbers = range(len(world.hosts))
    sends = [Send(0.0, key, number, number, 0.0) for key in keys[:SWEPT] for number in numbers]
    hosts: list[Host] = world.hosts
    swept = replace(traffic, ports=[host.port for host in hosts], names=[host.name for host in hosts])
    Clients(swept, sends, sweep=True).run()
