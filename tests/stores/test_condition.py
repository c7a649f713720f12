"""What is dangerous in the servers' settings: asked once a minute, logged once, told without an address."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flask_idempotent.core.store import Claimed
from flask_idempotent.stores.condition import FRESH_SECONDS, Condition
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.servers import Server

from ..servers.link import Link
from ..servers.standalone import RedisProcess, User
from .conftest import Connect
from .making import Clock, claim_of
from .topologies import cluster_settings, sentinel_settings, store_of
from .working import key_of

pytestmark = pytest.mark.redis

FORGETFUL = "Redis keeps nothing over a restart; set appendonly yes"
EVICTING = "Redis evicts records (allkeys-lru); set maxmemory-policy noeviction"
INFO = b"$4\r\nINFO"  # and not CLIENT SETINFO
SILENT = User("silent", "pw", ["~*", "&*", "+@all", "-info", "-config"])


@pytest.fixture
def link(redis_server: RedisProcess) -> Iterator[Link]:
    link = Link(redis_server.port)
    yield link
    link.close()


def test_the_servers_are_asked_once_a_minute(link: Link, connect: Connect) -> None:
    clock = Clock(0)
    condition = Condition(connect(link.port).nodes, lambda: clock.now / 1000)
    for _ in range(3):
        assert condition.warnings() == (FORGETFUL,)
    asked = link.asked(INFO)
    assert asked == 4, "a section each"
    clock.advance(int(FRESH_SECONDS * 1000) - 1)
    condition.warnings()
    assert link.asked(INFO) == asked
    clock.advance(2)
    condition.warnings()
    assert link.asked(INFO) == 2 * asked


def test_servers_that_do_not_answer_are_left_alone_for_a_minute(link: Link, connect: Connect) -> None:
    clock = Clock(0)
    condition = Condition(connect(link.port, timeout=0.1).nodes, lambda: clock.now / 1000)
    assert condition.warnings() == (FORGETFUL,)
    link.freeze()
    clock.advance(int(FRESH_SECONDS * 1000) + 1)
    asked = link.asked(INFO)
    for _ in range(3):
        assert condition.warnings() == (FORGETFUL,), "what was known is known still"
    assert link.asked(INFO) == asked + 4


def test_what_has_been_mended_is_no_longer_told(new_redis: Callable[..., RedisProcess], connect: Connect) -> None:
    server = new_redis("--maxmemory-policy", "allkeys-lru").start()
    clock = Clock(0)
    condition = Condition(connect(server.port).nodes, lambda: clock.now / 1000)
    assert condition.warnings() == (EVICTING, FORGETFUL)
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")
    clock.advance(int(FRESH_SECONDS * 1000) + 1)
    assert condition.warnings() == ()


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records]


@pytest.mark.parametrize("contact", ["servers", "ping", "report"])
def test_the_first_contact_of_a_process_logs_them_once(
    redis_server: RedisProcess, connect: Connect, caplog: pytest.LogCaptureFixture, contact: str
) -> None:
    store = connect(redis_server.port)
    caplog.set_level(logging.INFO, "flask_idempotent")
    first: dict[str, Callable[[], Any]] = {
        "servers": store.servers,
        "ping": store.ping,
        "report": store.report,
    }
    first[contact]()
    assert logged(caplog) == [
        (logging.WARNING, f"idempotency: localhost:{redis_server.port}/0: {FORGETFUL}"),
    ], "the log names the server"
    store.servers()
    store.ping()
    store.report()
    assert len(caplog.records) == 1


def test_an_outage_is_no_first_contact(link: Link, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    store = connect(link.port)
    link.cut()
    assert store.report().outage
    assert not caplog.records
    link.open()
    store.ping()
    assert len(caplog.records) == 1


def test_a_server_is_well_whatever_becomes_of_the_question(link: Link, connect: Connect) -> None:
    link.lose_replies_to(INFO)
    connect(link.port).ping()


def test_a_claim_costs_one_command(link: Link, connect: Connect) -> None:
    store = connect(link.port)
    assert store.claim(claim_of()) == Claimed(1)  # the server learns the script
    asked = link.asked(b"*")
    store.claim(claim_of(key=key_of(2)))
    assert link.asked(b"*") == asked + 1


def test_what_a_server_does_not_tell_is_unknown_and_no_alarm(
    new_redis: Callable[..., RedisProcess], connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A managed service may forbid the questions for ever: no warning at each start."""
    server = new_redis(user=SILENT).start()
    caplog.set_level(logging.INFO, "flask_idempotent")
    report = connect(server.port, username="silent", password="pw").report()
    assert report.redis_available
    assert len(report.warnings) == 3
    assert all(text.startswith("unknown whether") for text in report.warnings)
    assert {record.levelno for record in caplog.records} == {logging.INFO}


def test_nothing_that_is_told_names_a_server(connect: Connect, new_redis: Callable[..., RedisProcess]) -> None:
    master = new_redis().start()
    replica = new_redis("--maxmemory-policy", "volatile-ttl", replica_of=master).start()
    warnings = connect(replica.port).report().warnings
    assert len(warnings) == 3
    assert not [text for text in warnings if "127.0.0.1" in text or "localhost" in text or str(replica.port) in text]


@pytest.mark.parametrize("topology", ["sentinel_set", "cluster"])
def test_several_servers_with_the_same_danger_tell_it_once(request: pytest.FixtureRequest, topology: str) -> None:
    servers = request.getfixturevalue(topology)
    store: RedisStore = store_of(cluster_settings(servers) if topology == "cluster" else sentinel_settings(servers))
    assert store.report().warnings == (FORGETFUL,)
    store.close()


def test_a_server_of_which_all_is_known_and_well_has_no_dangers() -> None:
    server = Server("here", "7.0.15", "Redis 7.0.15", "noeviction", "aof+rdb", "master", 0)
    assert (server.dangers(), server.unknowns()) == ({}, {})
