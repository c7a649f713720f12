"""What the campaigns are made of: traffic from a seed, clocks that move, and processes that end with the campaign."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ..servers.process import until
from ..servers.standalone import RedisProcess
from .clock import Clock
from .host import ROOT
from .plan import COPIES, plan


def test_the_traffic_is_the_same_for_the_same_seed_and_another_for_another():
    first = plan(7, 1000, 100.0, hosts=2)
    assert first == plan(7, 1000, 100.0, hosts=2)
    assert first != plan(8, 1000, 100.0, hosts=2)
    assert [send.due for send in first] == sorted(send.due for send in first)
    copies = [sum(send.key == key for send in first) for key in {send.key for send in first}]
    assert COPIES[0] <= min(copies) < max(copies) <= COPIES[1]
    assert len(first) >= 1000
    assert {send.host for send in first} == {0, 1}
    assert any(send.fail for send in first)


@pytest.mark.redis
def test_a_clock_moves_the_time_of_a_server_and_not_the_time_it_takes(tmp_path: Path):
    clock = Clock(tmp_path)
    server = RedisProcess(tmp_path, variables=clock.variables).start()
    try:
        with server.client() as client:
            assert abs(client.time()[0] - time.time()) < 60
            client.set("key", "value", px=100_000)
            clock.move(-3600)
            assert abs(client.time()[0] + 3600 - time.time()) < 60
            assert client.pttl("key") > 3_000_000
            clock.move(3600)
            assert client.get("key") is None
    finally:
        server.stop()
        clock.close()


def test_a_clock_moves_the_time_of_a_worker_and_not_its_sleep(tmp_path: Path):
    clock = Clock(tmp_path)
    clock.move(86_400)
    code = "import time; began = time.monotonic(); time.sleep(0.2); print(time.time(), time.monotonic() - began)"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=os.environ | clock.variables, capture_output=True, text=True, check=True)
    now, slept = map(float, told.stdout.split())
    clock.close()
    assert abs(now - 86_400 - time.time()) < 60
    assert 0.2 <= slept < 60


@pytest.mark.redis
def test_a_campaign_that_is_killed_leaves_no_process_behind(tmp_path: Path):
    command = [sys.executable, "-m", "tests.faults", "freeze", "--policy", "local", "--requests", "5000"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    campaign = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        wanted = {"redis-server", "gunicorn", "tests.faults.client"}
        until(lambda: wanted <= set(_processes_in(tmp_path)), "the processes of a campaign")
    finally:
        campaign.kill()
        campaign.wait()
    until(lambda: not list(_processes_in(tmp_path)), "the end of them all")


def _processes_in(directory: Path) -> Iterator[str]:
    """What runs in a directory, or is told of it."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().decode().split("\0")
            if str(directory) in f"{words} {(process / 'cwd').readlink()}":
                yield words[2] if words[1:2] == ["-m"] else Path(words[0].split()[0]).name
