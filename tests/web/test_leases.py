"""Leases of real gunicorn workers that are slow, frozen, killed, or at it for too long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import count

import pytest
import requests

from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import assert_original, assert_problem, assert_replay, once_ended
from .deployment import Site, deployed

pytestmark = pytest.mark.redis

LEASE = 1.0
SLACK = 2.0  # for a busy machine


@pytest.fixture(scope="module")
def _site(_session_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with deployed(tmp_path_factory.mktemp("leases"), _session_redis, workers=3, lease=LEASE) as site:
        yield site


@pytest.fixture
def site(_site: Site) -> Iterator[Site]:
    """With views that wait for nothing before and after the test, and workers that are all awake."""
    _site.forget()
    yield _site
    for file in _site.holds():
        file.unlink()
    for pid in _site.server.pids:
        os.kill(pid, signal.SIGCONT)


_keys = (f"lease-{number}" for number in count())


class Request:
    """A request whose view is running, and the worker that runs it."""

    def __init__(self, site: Site, clients: ThreadPoolExecutor, path: str = "/") -> None:
        self.site, self.path, self.key = site, path, next(_keys)
        began = len(site.lines("began"))
        self.answer: Future[requests.Response | None] = clients.submit(self._send)
        until(lambda: len(site.lines("began")) > began, "the view to begin")
        self.worker = int(site.lines("began")[-1].split()[0])

    def _send(self) -> requests.Response | None:
        with suppress(requests.ConnectionError):
            return self.again()
        return None

    def again(self, amount: int = 1) -> requests.Response:
        return self.site.post(self.path, key=self.key, json={"a": amount})

    def once_ended(self) -> requests.Response:
        return once_ended(self.site, path=self.path, key=self.key, json={"a": 1})

    def signal(self, number: int) -> None:
        os.kill(self.worker, number)


@pytest.fixture
def clients(site: Site) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as clients:
        yield clients
        for file in site.holds():
            file.unlink()
        for pid in site.server.pids:
            os.kill(pid, signal.SIGCONT)


def test_a_view_three_times_longer_than_its_lease_keeps_its_key(site: Site, clients: ThreadPoolExecutor) -> None:
    site.hold.touch()
    slow = Request(site, clients)
    over = time.monotonic() + 3 * LEASE
    while time.monotonic() < over:
        assert_problem(slow.again(), "request-in-progress")
        assert_problem(slow.again(amount=2), "key-reused")
    site.hold.unlink()
    first = slow.answer.result()
    assert first is not None
    assert_original(first)
    assert first.json()["attempt"] == 1
    assert_replay(slow.again(), first)
    assert len(site.lines("began")) == 1


@pytest.mark.parametrize("status", [201, 401, 500])
def test_a_worker_that_was_frozen_past_its_lease_neither_overwrites_nor_frees_the_newer_claim(
    site: Site, clients: ThreadPoolExecutor, status: int
) -> None:
    """Whatever its view says in the end, its own client is told just that."""
    site.file("status-1").write_text(str(status))
    site.file("hold-1").touch()
    site.file("hold-2").touch()
    frozen = Request(site, clients)
    frozen.signal(signal.SIGSTOP)
    newer = clients.submit(frozen.once_ended)
    until(lambda: len(site.lines("began")) == 2, "the retry to begin")
    site.file("hold-1").unlink()
    frozen.signal(signal.SIGCONT)
    late = frozen.answer.result()
    assert late is not None
    assert_original(late, status)
    assert (late.json()["attempt"], late.json()["worker"]) == (1, frozen.worker)
    assert_problem(frozen.again(), "request-in-progress")
    assert_problem(frozen.again(amount=2), "key-reused")
    site.file("hold-2").unlink()
    assert_original(newer.result())
    assert newer.result().json()["attempt"] == 2
    assert_replay(frozen.again(), newer.result())
    assert [line.split()[1] for line in site.lines("began")] == ["1", "2"]
    assert len({line.split()[2] for line in site.lines("began")}) == 1, "both gave the same key to the payment service"


def test_kill_9_frees_the_key_after_a_lease_for_the_same_request_only(site: Site, clients: ThreadPoolExecutor) -> None:
    site.file("hold-1").touch()
    dead = Request(site, clients)
    dead.signal(signal.SIGKILL)
    killed = time.monotonic()
    assert dead.answer.result() is None
    assert_problem(dead.again(amount=2), "key-reused")
    answer = dead.once_ended()
    assert time.monotonic() - killed < LEASE + SLACK
    assert_original(answer)
    assert answer.json()["attempt"] == 2
    assert_problem(dead.again(amount=2), "key-reused")
    assert_replay(dead.again(), answer)


def test_the_key_of_a_dead_worker_is_nobody_elses_though_its_lease_is_over(
    site: Site, clients: ThreadPoolExecutor
) -> None:
    site.file("hold-1").touch()
    dead = Request(site, clients, "/careful")
    dead.signal(signal.SIGKILL)
    assert dead.answer.result() is None
    (unknown,) = until(lambda: _unless_running(dead), "the end of the lease")
    assert assert_problem(unknown, "outcome-unknown")["retryable"] is False
    assert_problem(dead.again(amount=2), "key-reused")
    assert_problem(dead.again(), "outcome-unknown")
    assert len(site.lines("began")) == 1


def _unless_running(request: Request) -> list[requests.Response]:
    answer = request.again()
    return [] if answer.json()["code"] == "request-in-progress" else [answer]


def test_a_view_past_its_longest_runtime_is_given_up_and_its_late_word_does_not_count(
    site: Site, clients: ThreadPoolExecutor
) -> None:
    site.file("hold-1").touch()
    endless = Request(site, clients, "/brief")
    newer = endless.once_ended()
    assert_original(newer)
    assert newer.json()["attempt"] == 2
    site.file("hold-1").unlink()
    late = endless.answer.result()
    assert late is not None
    assert_original(late)
    assert late.json()["attempt"] == 1
    assert_replay(endless.again(), newer)
