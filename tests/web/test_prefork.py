"""Real gunicorn workers, of threads and of greenlets, forked before and after the app was made and used.

Threads that were forked before it are those of :mod:`.test_leases`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from flask_idempotent.core.record import read_head

from ..servers.process import until
from ..servers.standalone import RedisProcess
from .conftest import REPLAYED
from .deployment import Site, deployed

pytestmark = pytest.mark.redis

WORKERS = 2
LEASE = 1.0
SITES = {
    "threads, forked after a first use": {"kind": "gthread", "preload": True, "use_first": True},
    "greenlets": {"kind": "gevent"},
    "greenlets, forked after a first use": {"kind": "gevent", "preload": True, "use_first": True},
}


@pytest.fixture(scope="module", params=SITES)
def site(
    request: pytest.FixtureRequest, _session_redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """A gunicorn that serves all tests of its kind."""
    directory = tmp_path_factory.mktemp("site")
    with deployed(directory, _session_redis, workers=WORKERS, wait=15, lease=LEASE, **SITES[request.param]) as site:
        yield site


def used_by_all(site: Site) -> None:
    """Have every worker answer, and so open connections of its own."""
    seen: set[int] = set()

    def answer(number: int) -> int:
        return int(site.post(key=f"use-{len(seen)}-{number}-{id(seen)}").json()["worker"])

    with ThreadPoolExecutor(8) as clients:
        until(lambda: seen.update(clients.map(answer, range(8))) or len(seen) == WORKERS, "answers of all workers")


def test_duplicates_at_once_run_once(site: Site) -> None:
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda _: site.post(key="at-once", json={"a": 1}), range(24)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert Counter(REPLAYED in answer.headers for answer in answers) == {False: 1, True: 23}


def test_those_who_wait_hear_and_a_view_longer_than_its_lease_keeps_its_key(site: Site) -> None:
    site.hold.touch()
    began = len(site.lines("began"))
    with site.redis.client() as server, ThreadPoolExecutor(16) as clients:
        try:
            first = clients.submit(site.post, key="slow", json={"a": 1})
            until(lambda: len(site.lines("began")) > began, "the view to begin")
            (key,) = [each for each in server.keys(f"{site.prefix}*") if read_head(server.get(each)).state == b"P"]
            waiting = [clients.submit(site.post, key="slow", json={"a": 1}) for _ in range(8)]
            until(lambda: dict(server.pubsub_numsub(key))[key], "somebody who listens")
            over = server.time()[0] + 2 * LEASE
            until(lambda: server.time()[0] > over, "two leases to pass")
            late = [clients.submit(site.post, key="slow", json={"a": 1}) for _ in range(4)]
            until(lambda: server.client_list(_type="pubsub"), "somebody who listens")
            assert not any(each.done() for each in (first, *waiting))
            assert 1 <= dict(server.pubsub_numsub(key))[key] <= WORKERS, "one who listens in each worker"
        finally:
            site.hold.unlink()
        answers = [each.result() for each in (first, *waiting, *late)]
    assert {answer.status_code for answer in answers} == {201}
    assert len(site.lines("began")) == began + 1
    assert [answer.headers.get(REPLAYED) for answer in answers] == [None] + ["true"] * 12


def test_no_two_processes_have_the_same_connection(site: Site) -> None:
    used_by_all(site)
    with site.redis.client() as server:
        connections = {int(each["addr"].rpartition(":")[2]): each for each in server.client_list()}
    holders = {port: site.server.holders(port) for port in connections}
    shared = {port: (pids, connections[port]) for port, pids in holders.items() if len(pids) > 1}
    assert shared == {}, (site.server.pid, shared)
    assert {pid for pids in holders.values() for pid in pids} >= set(site.server.pids)


def test_it_ends_when_it_is_told_to(site: Site) -> None:
    """The last test of each site."""
    assert site.server.end() == 0
