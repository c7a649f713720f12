"""What Redis missed while it was away, and how it gets it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import redis

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, OnOutage, StoreError, StoreFull
from flask_idempotent.stores import breaker
from flask_idempotent.stores.memory import MemoryStore
from flask_idempotent.stores.recovery import Recovery
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.shared import SharedStore
from flask_idempotent.stores.tier import Copies, LocalTier
from flask_idempotent.stores.tiered import TieredStore
from flask_idempotent.stores.writeback import Copy, Restored

from ..servers.standalone import RedisProcess
from .conftest import Connect, memory
from .making import (
    DIFFERENT,
    KEY,
    LEASE,
    ME,
    OTHER,
    SAME,
    THIRD,
    TTL,
    alive,
    claim_of,
    eventually,
    payload_of,
    record_of,
)
from .test_contract import do
from .working import Workers, answered_by, cut_off, finish, head_in, key_of, recovered

pytestmark = pytest.mark.redis
P, F, D = State.PENDING, State.FAILED, State.DONE


def reports(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The log records that tell of a request that ran twice."""
    return [record for record in caplog.records if "elsewhere" in record.getMessage()]


@pytest.mark.parametrize(("event", "state"), [(None, P), ("fail", F), ("complete", D)])
def test_what_redis_never_saw_is_written_with_what_is_left_of_its_time(
    worker: Workers, server: redis.Redis, event: str | None, state: State
) -> None:
    one, other = worker(), worker()
    cut_off(one)
    one.store.claim(claim_of(ttl_ms=100_000, attempt=1))
    if event == "complete":
        one.store.complete(claim_of(), payload_of(claim_of(), ME), 50_000)
    elif event:
        do(one.store, event, claim_of(ttl_ms=100_000))
    retained = 50_000 if state is D else 100_000
    recovered(one)

    assert head_in(server) == (state, ME)
    assert retained - 5000 < server.pttl(KEY) <= retained
    seconds, _ = server.time()
    left = read_head(server.get(KEY)).deadline - seconds * 1000
    assert left <= {P: LEASE + 1000, F: 1000, D: 51_000}[state]
    assert left > {P: LEASE - 5000, F: -5000, D: 45_000}[state]
    assert server.get(KEY)[65:] == (payload_of(claim_of(), ME) if state is D else b"")
    answer = other.store.claim(claim_of(OTHER))
    assert answer == Claimed(2) if state is F else isinstance(answer, Found)


def test_a_request_that_still_runs_goes_on_after_the_outage(worker: Workers, server: redis.Redis) -> None:
    one, other = worker(), worker()
    one.store.claim(claim_of())
    cut_off(one)
    one.store.renew([claim_of()])
    recovered(one)
    assert head_in(server) == (P, ME)
    assert isinstance(other.store.claim(claim_of(OTHER)), Found)
    assert one.store.renew([claim_of()]) == [True]
    assert one.store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
    assert answered_by(other) == ME


def test_the_request_of_another_that_still_runs_is_waited_for(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = worker(), worker()
    other.store.claim(claim_of(OTHER))
    cut_off(one)
    finish(one)
    one.link.open()
    eventually(lambda: one.store.report().redis_available)
    asked = one.link.asked(b"EVALSHA")
    eventually(lambda: one.link.asked(b"EVALSHA") > asked + 1)
    assert one.store.report().waiting == 1
    assert head_in(server) == (P, OTHER)
    assert answered_by(one) == ME

    assert other.store.complete(claim_of(OTHER), payload_of(claim_of(OTHER), OTHER), TTL)
    eventually(lambda: not one.store.report().waiting)
    assert (answered_by(one), answered_by(other)) == (ME, OTHER)
    assert len(reports(caplog)) == 1


def test_what_runs_here_since_an_outage_is_what_duplicates_here_wait_for(worker: Workers) -> None:
    """Another host has finished the key. That answers its own clients and all who come new, but not those of a host
    that is about to tell one of them something else.
    """
    one, other = worker(), worker()
    finish(other, OTHER)
    cut_off(one)
    assert one.store.claim(claim_of()) == Claimed(1)
    one.link.open()
    eventually(lambda: one.store.report().redis_available)
    with ThreadPoolExecutor(1) as pool:
        found = one.store.claim(claim_of(THIRD))
        assert isinstance(found, Found)
        assert read_head(found.record).owner == ME
        waiter = pool.submit(one.store.wait, KEY, 5000)
        assert one.store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
        answer = waiter.result(5)
        assert isinstance(answer, Found)
        assert read_head(answer.record)[:3] == (D, 1, ME)
    eventually(lambda: not one.store.report().waiting)
    assert (answered_by(one), answered_by(other), answered_by(worker())) == (ME, OTHER, OTHER)


@pytest.mark.parametrize("ending", ["forget", "lapse"])
def test_ours_is_written_when_the_other_one_gives_up(worker: Workers, server: redis.Redis, ending: str) -> None:
    one, other = worker(), worker()
    theirs = claim_of(OTHER, lease_ms=LEASE if ending == "forget" else 200)
    other.store.claim(theirs)
    cut_off(one)
    finish(one)
    one.link.open()
    eventually(lambda: one.store.report().redis_available)
    if ending == "forget":
        other.store.forget(theirs)
    eventually(lambda: head_in(server) == (D, ME))
    eventually(lambda: not one.store.report().waiting)


@pytest.mark.parametrize(
    ("theirs", "stands"),
    [
        (record_of(D), True),
        (record_of(D, fingerprint=DIFFERENT), True),
        (record_of(F, fingerprint=DIFFERENT), True),
        (record_of(P, fingerprint=DIFFERENT, deadline=1_000_000_000_000), True),
        (b"damaged", True),
        (b"\x02newer", True),
        (record_of(F), False),
        (record_of(P, deadline=1_000_000_000_000), False),
    ],
    ids=["done", "foreign done", "foreign failed", "foreign lapsed", "damaged", "newer", "failed", "lapsed"],
)
def test_what_stands_on_redis_stands_unless_its_request_is_ours(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture, theirs: bytes, stands: bool
) -> None:
    one = worker()
    cut_off(one)
    finish(one)
    server.set(KEY, theirs, px=TTL)
    recovered(one)
    assert (server.get(KEY) == theirs) is stands
    assert stands or head_in(server) == (D, ME)
    assert answered_by(one) == ME, "this host goes on with what its clients have been told"
    assert len(reports(caplog)) == stands
    for record in reports(caplog):
        assert record.levelname == "ERROR"
        assert record.__dict__["idempotency_key"] == KEY


def test_of_two_hosts_that_ran_one_request_the_first_to_come_back_counts(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one, other, third = worker(), worker(), worker()
    for each, owner in ((one, ME), (other, OTHER)):
        cut_off(each)
        finish(each, owner)
    recovered(one)
    recovered(other)
    assert head_in(server) == (D, ME)
    assert (answered_by(one), answered_by(other), answered_by(third)) == (ME, OTHER, ME)
    assert len(reports(caplog)) == 1


@pytest.mark.parametrize("policy", OnOutage)
@pytest.mark.parametrize("event", ["claim", "renew", "complete", "fail", "forget"])
def test_a_reply_that_was_lost_is_made_good(worker: Workers, server: redis.Redis, policy: OnOutage, event: str) -> None:
    one, other = worker(), worker()
    mine = claim_of(on_outage=policy)
    if event != "claim":
        one.store.claim(mine)
    one.link.lose_replies_to(b"EVALSHA")
    if event != "claim":
        assert do(one.store, event, mine) is True
    elif policy is OnOutage.LOCAL:
        assert one.store.claim(mine) == Claimed(1)
    else:
        with pytest.raises(StoreError) as caught:
            one.store.claim(mine)
        assert caught.value.outage
        assert one.local.get(KEY) is None
    applied = {"claim": (P, ME), "renew": (P, ME), "complete": (D, ME), "fail": (F, ME), "forget": None}[event]
    assert head_in(server) == applied

    recovered(one)
    if event == "claim" and policy is not OnOutage.LOCAL:
        assert server.get(KEY) is None, "nobody runs it, so nobody may be kept from it"
        assert other.store.claim(claim_of(OTHER, fingerprint=DIFFERENT)) == Claimed(1)
    else:
        assert head_in(server) == applied


def test_every_claim_of_unknown_fate_is_forgotten(worker: Workers, server: redis.Redis) -> None:
    """A client that got 503 tries again, and the second claim is lost like the first."""
    one, other = worker(), worker()
    one.link.lose_replies_to(b"EVALSHA")
    for owner in (ME, OTHER):
        with pytest.raises(StoreError):
            one.store.claim(claim_of(owner, on_outage=OnOutage.REJECT))
    assert head_in(server) in ((P, ME), (P, OTHER))  # the probe may have undone the first by now
    recovered(one)
    assert server.get(KEY) is None
    assert other.store.claim(claim_of(THIRD)) == Claimed(1)


def test_plain_values_follow_too(worker: Workers, server: redis.Redis) -> None:
    one = worker()
    one.store.set(key_of(1), b"old", TTL)
    one.store.set(key_of(2), b"old", TTL)
    cut_off(one)
    one.store.set(key_of(1), b"", 60_000)
    assert one.store.delete(key_of(2)) is True
    assert one.store.delete(key_of(2)) is False
    one.store.set(key_of(3), b"\x00", TTL)
    assert [one.store.get(key_of(number)) for number in (1, 2, 3)] == [b"", None, b"\x00"]
    recovered(one)
    assert server.mget([key_of(number) for number in (1, 2, 3)]) == [b"", None, b"\x00"]
    assert 50_000 < server.pttl(key_of(1)) <= 60_000


def test_what_has_expired_meanwhile_is_not_written(worker: Workers, server: redis.Redis) -> None:
    one = worker()
    cut_off(one)
    mine = claim_of(lease_ms=50, ttl_ms=50)
    one.store.claim(mine)
    eventually(lambda: one.local.get(KEY) is None)
    recovered(one)
    assert server.get(KEY) is None


@pytest.mark.parametrize("event", ["renew", "complete", "fail"])
def test_a_redis_that_comes_back_empty_gets_what_still_runs(worker: Workers, server: redis.Redis, event: str) -> None:
    one, other = worker(), worker()
    one.store.claim(claim_of())
    finish(one, key=key_of(1))
    server.flushall()
    assert do(one.store, event, claim_of()) is True
    assert head_in(server) == ({"renew": P, "complete": D, "fail": F}[event], ME)
    assert answered_by(one, key_of(1)) == ME
    if event == "complete":
        assert isinstance(other.store.claim(claim_of(OTHER)), Found)


def test_many_records_are_written_back(worker: Workers, server: redis.Redis) -> None:
    one = worker(threshold=500)
    cut_off(one)
    for number in range(200):
        finish(one, key=key_of(number))
    assert one.store.report().waiting == 200
    recovered(one)
    assert server.dbsize() == 200


def test_a_record_that_cannot_be_written_does_not_hold_the_breaker_open(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one = worker()
    server.rpush(KEY, "somebody else's list")
    cut_off(one)
    finish(one)
    finish(one, key=key_of(1))
    one.link.open()
    eventually(lambda: one.store.report().redis_available, within=2)
    assert head_in(server, key_of(1)) == (D, ME)
    assert server.lrange(KEY, 0, -1) == [b"somebody else's list"]
    assert any(KEY in str(record.__dict__.get("idempotency_key")) for record in caplog.records), "it is reported"


def test_a_full_redis_gets_the_rest_when_it_has_room(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one = worker()
    cut_off(one)
    finish(one)
    server.config_set("maxmemory", 1)
    one.link.open()
    eventually(lambda: one.store.report().redis_available)
    assert one.store.report().waiting == 1
    server.config_set("maxmemory", 0)
    recovered(one)
    assert head_in(server) == (D, ME)


def test_a_full_redis_is_not_an_outage_that_comes_and_goes(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    one = worker()
    one.store.claim(claim_of())
    server.config_set("maxmemory", 1)
    for number in range(100):
        with suppress(StoreFull):
            one.store.claim(claim_of(key=key_of(number)))
        time.sleep(0.005)
    assert sum(record.levelno == logging.ERROR for record in caplog.records) <= 1


class Interrupted(RedisStore):
    """A store in which something happens just before or after a record is written back."""

    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None

    def restore(self, copies: Sequence[Copy]) -> list[Restored | StoreError]:
        before, self.before = self.before, None
        if before:
            before()
        restored = super().restore(copies)
        after, self.after = self.after, None
        if after:
            after()
        return restored

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        super().set(key, value, ttl_ms)
        if threading.current_thread().name == "idempotency-probe" and self.after:
            after, self.after = self.after, None
            after()


class Observed(MemoryStore):
    """A local tier in which something happens between two of its own steps and those of the worker."""

    before_value: Callable[[], object] | None = None
    after_outcome: Callable[[], object] | None = None
    after_second_look: Callable[[], object] | None = None
    looks = 0

    def take(self, key: str) -> tuple[bytes, int] | None:
        taken = super().take(key)
        if self.after_second_look:
            self.looks += 1
            if self.looks == 2:
                self.after_second_look()
        return taken

    def set(self, key: str, value: bytes, ttl_ms: int, *, owed: bool = False) -> None:
        self._interrupt()
        super().set(key, value, ttl_ms, owed=owed)

    def delete(self, key: str, *, owed: bool = False) -> bool:
        self._interrupt()
        return super().delete(key, owed=owed)

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int, *, owed: bool = False) -> bool:
        kept = super().complete(claim, payload, ttl_ms, owed=owed)
        after, self.after_outcome = self.after_outcome, None
        if after:
            after()
        return kept

    def _interrupt(self) -> None:
        before, self.before_value = self.before_value, None
        if before:
            before()


@pytest.mark.parametrize("moment", ["before", "after", "after_second_look"])
@pytest.mark.parametrize("event", ["complete", "fail", "forget"])
def test_a_request_that_ends_while_its_claim_is_written_back_ends_on_redis_too(
    worker: Workers, server: redis.Redis, event: str, moment: str
) -> None:
    one = worker(of=Interrupted, local_of=Observed)
    mine = claim_of()
    one.store.claim(mine)
    cut_off(one)
    one.store.renew([mine])  # what the heartbeat does, with the very claim that the request ends with
    setattr(one.local if "look" in moment else one.shared, moment, lambda: do(one.store, event, mine))
    recovered(one)
    assert head_in(server) == {"complete": (D, ME), "fail": (F, ME), "forget": None}[event]


def test_a_request_that_ends_just_when_redis_is_back_ends_there_once(worker: Workers, server: redis.Redis) -> None:
    """One failure does not open the breaker, so that the end of the request overtakes the write-back."""
    for event in ("fail", "forget"):
        server.flushall()
        one = worker(of=Interrupted)
        assert isinstance(one.shared, Interrupted)
        mine = claim_of()
        one.link.cut()
        one.store.claim(mine)
        one.shared.before = lambda one=one, mine=mine, event=event: do(one.store, event, mine)
        one.link.open()
        eventually(lambda one=one: one.shared.before is None)
        recovered(one)
        assert head_in(server) == ((F, ME) if event == "fail" else None)


def test_a_value_that_is_set_again_while_it_is_written_back_is_not_lost(worker: Workers, server: redis.Redis) -> None:
    one = worker(of=Interrupted)
    assert isinstance(one.shared, Interrupted)
    cut_off(one)
    one.store.set(KEY, b"first", TTL)
    one.shared.after = lambda: one.store.set(KEY, b"second", TTL)
    recovered(one)
    assert server.get(KEY) == b"second"


@pytest.mark.parametrize("new", [b"new", None])
def test_a_value_that_changes_while_an_older_one_is_written_back_is_not_lost(
    worker: Workers, server: redis.Redis, new: bytes | None
) -> None:
    """The probe pays what is owed for the key just before it changes, and is held up by another key just after."""
    one = worker(of=Interrupted, local_of=Observed)
    assert isinstance(one.shared, Interrupted)
    assert isinstance(one.local, Observed)
    cut_off(one)
    one.store.set(key_of(1), b"old", TTL)
    changed = threading.Event()
    one.shared.before = lambda: changed.wait(5)

    def pay() -> None:
        one.store.claim(claim_of(key=key_of(2)))  # owed after the other, so that its turn comes later
        one.link.open()
        eventually(lambda: server.get(key_of(1)) == b"old" and one.shared.before is None)

    one.local.before_value = pay
    one.store.set(key_of(1), new, TTL) if new else one.store.delete(key_of(1))
    changed.set()
    recovered(one)
    assert server.get(key_of(1)) == new


def test_a_value_without_room_is_refused_and_leaves_the_older_one_alone(worker: Workers, server: redis.Redis) -> None:
    one = worker(threshold=1)
    one.store.claim(claim_of())
    server.set(key_of(1), b"old", px=TTL)
    try:
        one.store.set(key_of(1), b"new", TTL)
        expected = b"new"
    except StoreFull:
        expected = b"old"
    eventually(lambda: not one.store.report().waiting)
    assert server.get(key_of(1)) == one.store.get(key_of(1)) == expected


def test_a_full_local_tier_keeps_an_outcome_from_its_first_moment(worker: Workers, server: redis.Redis) -> None:
    """Another request comes between the outcome here and the news of it for Redis, which is then lost."""
    one, other = worker(threshold=1, local_of=Observed), worker()
    assert isinstance(one.local, Observed)
    one.store.claim(claim_of())

    def meanwhile() -> None:
        with suppress(StoreFull):
            one.store.claim(claim_of(OTHER, key_of(1)))
        one.link.cut()

    one.local.after_outcome = meanwhile
    assert one.store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
    recovered(one)
    assert answered_by(other) == ME


def test_a_full_local_tier_keeps_the_place_of_an_outcome_that_is_on_its_way(
    worker: Workers, server: redis.Redis
) -> None:
    one, other = worker(timeout=0.4, threshold=1), worker()
    one.store.claim(claim_of())
    one.link.freeze()
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(one.store.complete, claim_of(), payload_of(claim_of(), ME), TTL)
        with suppress(StoreFull):
            one.store.claim(claim_of(OTHER, key_of(1)))
        assert ending.result(5) is True
    recovered(one)
    assert answered_by(other) == ME


@pytest.mark.parametrize("persistent", [False, True])
def test_a_server_that_is_restarted_gets_everything(
    new_redis: Callable[..., RedisProcess], connect: Connect, persistent: bool
) -> None:
    server = new_redis(persistent=persistent).start()
    one, other = (TieredStore(memory(), connect(server.port)) for _ in range(2))
    running, done = claim_of(), claim_of(key=key_of(1))
    for claim in (running, done):
        one.claim(claim)
    server.stop()
    assert one.complete(done, payload_of(done, ME), TTL)
    assert one.renew([running]) == [True]
    server.start()
    eventually(lambda: one.report().redis_available and not one.report().waiting)
    with server.client() as client:
        assert head_in(client) == (P, ME)
        assert head_in(client, done.key) == (D, ME)
    assert isinstance(other.claim(claim_of(OTHER)), Found)
    assert one.complete(running, payload_of(running), TTL)
    for each in (one, other):
        each.close()
    eventually(lambda: not alive("probe"))


@pytest.fixture
def restart(
    new_redis: Callable[..., RedisProcess], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[RedisProcess, list[TieredStore]]]:
    """Starts a Redis that keeps nothing over a restart, and workers with a tier each."""
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 0.02)

    def start(*tiers: LocalTier, timeout: float = 5.0) -> tuple[RedisProcess, list[TieredStore]]:
        server = new_redis().start()
        return server, [TieredStore(tier, connect(server.port, timeout)) for tier in tiers]

    return start


def counts(client: redis.Redis) -> int:
    """How many scripts a server has run since it was started."""
    return int(client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"])


def test_one_worker_of_a_host_brings_back_what_it_holds(
    restart: Callable[..., Any], shared: Callable[..., SharedStore]
) -> None:
    server, (one, other) = restart(shared(), shared())
    for number in range(1200):
        (one, other)[number % 2].set(key_of(number), b"value", TTL)
    for number in range(1200, 1500):
        claim = claim_of(key=key_of(number))
        one.claim(claim)
        one.complete(claim, payload_of(claim), TTL)
    server.stop()
    eventually(lambda: one.report().outage and other.report().outage)
    server.start()
    for each in (one, other):
        eventually(lambda each=each: each.report().redis_available and not each.report().waiting)
    with server.client() as client:
        assert client.dbsize() == 1500
        assert counts(client) <= 2 * 300 + 10, "each record was looked for once, and written once"
        assert head_in(client, key_of(1499)) == (D, ME)


def test_what_a_restarted_redis_still_has_is_not_sent_again(
    new_redis: Callable[..., RedisProcess], connect: Connect
) -> None:
    server = new_redis(persistent=True).start()
    store = TieredStore(memory(), connect(server.port))
    for number in range(20):
        claim = claim_of(key=key_of(number))
        store.claim(claim)
        store.complete(claim, payload_of(claim, b"x" * 1000), TTL)
    server.stop()
    server.start()
    with server.client() as client:
        client.delete(key_of(7))
        eventually(lambda: client.exists(key_of(7)))
        eventually(lambda: not store.report().waiting)
        sent = client.info("stats")["total_net_input_bytes"]
    assert sent < 10_000


def test_large_records_are_brought_back_within_the_time_of_one_answer(restart: Callable[..., Any]) -> None:
    server, (one,) = restart(memory(), timeout=0.25)
    claims = [claim_of(key=key_of(number)) for number in range(100)]
    body = os.urandom(1 << 20)
    for claim in claims:
        assert one.claim(claim) == Claimed(1)
        assert one.complete(claim, payload_of(claim, body), TTL)
    server.stop()
    server.start()
    with server.client() as client:
        eventually(lambda: client.dbsize() == 100, within=20)


@pytest.mark.parametrize("how", ["ended", "running"])
def test_a_process_that_is_started_after_a_restart_takes_it_for_no_deletion(
    restart: Callable[..., Any],
    shared: Callable[..., SharedStore],
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """The first one to meet the new server has told nobody what that one lacks: it ends, or has not come to it yet."""
    server, (before,) = restart(shared())
    for number in range(10):
        finish_in(before, key_of(number))
    before.close()
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60.0)
    server.stop()
    server.start()
    first, second = (TieredStore(shared(), connect(server.port)) for _ in range(2))
    finish_in(first, key_of(10))
    if how == "ended":
        first.close()
    with pytest.raises(StoreError, match="a moment ago"):
        second.claim(claim_of(OTHER, key_of(11), on_outage=OnOutage.REJECT))
    for number in range(10):
        found = second.claim(claim_of(OTHER, key_of(number)))
        assert isinstance(found, Found), "it would run twice"
        assert found.record[1:2] == D.value


def test_a_restarted_server_has_forgotten_nothing_on_purpose(
    restart: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request whose worker died stays interrupted, though the server that is asked now does not know it."""
    server, (one,) = restart(memory())
    one.claim(claim_of(lease_ms=50, resume=False))
    time.sleep(0.1)
    one.close()
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60.0)
    server.stop()
    server.start()
    for number in range(3):
        assert isinstance(one.claim(claim_of(bytes([number]) * 16, resume=False)), Found)


def test_what_ended_while_it_was_brought_back_is_taken_back(restart: Callable[..., Any]) -> None:
    class Late(MemoryStore):
        """Forgets a running claim between its copying and its writing."""

        def copies(self, before: int = 0, limit: int = 500) -> Copies:
            page = super().copies(before, limit)
            self.forget(claim_of())
            return page

    server, (one,) = restart(memory(of=Late))
    one.claim(claim_of())
    server.stop()
    server.start()
    with server.client() as client:
        eventually(lambda: one.report().redis_available and not one._contact().recovery.is_behind)
        assert one._contact().recovery.knows_all
        assert client.get(KEY) is None


def test_what_runs_since_an_outage_keeps_its_lease_whoever_else_has_the_key(worker: Workers) -> None:
    one, other = worker(), worker()
    cut_off(one)
    mine = claim_of(lease_ms=300)
    assert one.store.claim(mine) == Claimed(1)
    theirs = claim_of(OTHER)
    assert other.store.claim(theirs) == Claimed(1)
    one.link.open()
    eventually(lambda: one.store.report().redis_available)
    for _ in range(5):
        time.sleep(0.1)
        assert one.store.renew([mine]) == [True]
    other.store.fail(theirs)
    assert isinstance(one.store.claim(claim_of(THIRD)), Found), "it still runs here"
    assert one.store.complete(mine, payload_of(mine, ME), TTL)
    assert answered_by(one) == ME


class Held(MemoryStore):
    """Like a file that another process holds from some moment on."""

    held = False

    def renew(self, claims: Sequence[Claim], *, owed: bool = False) -> list[bool]:
        if self.held:
            raise StoreError("the file is held by another process")
        return super().renew(claims, owed=owed)


def test_a_local_tier_that_is_stuck_ends_no_lease_on_redis(worker: Workers, server: redis.Redis) -> None:
    one = worker(local_of=Held)
    mine = claim_of(lease_ms=300)
    one.store.claim(mine)
    one.local.held = True  # type: ignore[attr-defined]
    for _ in range(5):
        time.sleep(0.1)
        assert one.store.renew([mine]) == [True]
    assert isinstance(worker().store.claim(claim_of(OTHER)), Found)
    cut_off(one)
    with pytest.raises(StoreError, match="held by another process"):
        one.store.renew([mine])


@pytest.mark.parametrize("attempts", [1, 2])
def test_a_claim_of_unknown_fate_leaves_what_was_there_before(
    worker: Workers, server: redis.Redis, attempts: int
) -> None:
    """Redis granted it over a failed one and could not say so; this host knows nothing of that one."""
    one, other = worker(timeout=0.1), worker()
    if attempts == 2:
        other.store.claim(claim_of(OTHER))
        other.store.fail(claim_of(OTHER))
    one.link.lose_replies_to(b"EVALSHA")
    with pytest.raises(StoreError):
        one.store.claim(claim_of(on_outage=OnOutage.REJECT))
    assert head_in(server) == (P, ME)
    recovered(one)
    assert head_in(server) == (None if attempts == 1 else (F, ME))
    if attempts == 2:
        assert isinstance(other.store.claim(claim_of(THIRD, fingerprint=DIFFERENT)), Found)


@pytest.mark.parametrize("policy", [OnOutage.LOCAL, OnOutage.REJECT])
def test_while_records_are_brought_back_only_who_must_not_run_twice_waits(
    restart: Callable[..., Any], shared: Callable[..., SharedStore], policy: OnOutage
) -> None:
    """It is another worker's turn, and that one has been stopped."""
    tier = shared()
    server, (one,) = restart(tier)
    finish_in(one, key_of(1))
    one.set(key_of(2), b"value", TTL)
    server.stop()
    eventually(lambda: one.report().outage)
    tier.take_turn("who brings records back", OTHER, 1500)
    server.start()
    eventually(lambda: one.report().redis_available)
    assert one.report().waiting == 2
    assert one.get(key_of(2)) == b"value"
    assert one.peek(key_of(1)) is not None
    assert isinstance(one.claim(claim_of(OTHER, key_of(1))), Found)
    new = claim_of(OTHER, key_of(3), on_outage=policy)
    if policy is OnOutage.LOCAL:
        assert one.claim(new) == Claimed(1)
        with server.client() as client:
            assert head_in(client, key_of(3)) == (P, OTHER), "Redis is asked again"
    else:
        with pytest.raises(StoreError, match="a moment ago"):
            one.claim(new)
    eventually(lambda: not one.report().waiting)
    with server.client() as client:
        assert head_in(client, key_of(1)) == (D, ME)
        assert client.get(key_of(2)) == b"value"


def finish_in(store: TieredStore, key: str) -> None:
    claim = claim_of(key=key)
    assert store.claim(claim) == Claimed(1)
    assert store.complete(claim, payload_of(claim), TTL)


def test_a_late_worker_does_not_win_by_an_outage(
    worker: Workers, server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lease ends on Redis while it is cut off; another takes over and finishes; then the late one comes back."""
    late, other = worker(), worker()
    mine = claim_of(lease_ms=50)
    late.store.claim(mine)
    cut_off(late)
    theirs = claim_of(OTHER, attempt=2)
    eventually(lambda: other.store.claim(theirs) == Claimed(2))
    other.store.complete(theirs, payload_of(theirs, OTHER), TTL)
    late.store.complete(mine, payload_of(mine, ME), TTL)
    recovered(late)
    assert head_in(server) == (D, OTHER)
    assert answered_by(other) == OTHER
    assert len(reports(caplog)) == 1
    assert read_head(server.get(KEY)).fingerprint == SAME


@pytest.mark.parametrize("ended", [True, False], ids=["given back", "finished elsewhere"])
def test_an_outcome_finds_its_way_back_past_a_claim_that_was_granted_by_an_empty_redis(
    connect: Connect, redis_server: RedisProcess, server: redis.Redis, ended: bool
) -> None:
    """Between the restart and the return of the record another host may have asked, and be refused only then."""
    local, shared, other = memory(), connect(redis_server.port), connect(redis_server.port)
    twice: list[str] = []
    recovery = Recovery(local, shared, twice.append)
    recovery.meet()
    for store in (local, shared):
        store.claim(claim_of())
        assert store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
    server.flushall()
    local.remember("servers", b"those before the restart")
    recovery.is_behind = True
    other.claim(claim_of(OTHER))
    assert recovery.glance(), "it is owed as long as another holds the key"
    assert recovery.is_blocked
    assert head_in(server) == (P, OTHER)
    assert not recovery()
    if ended:
        assert other.withdraw(KEY, OTHER)
    else:
        assert other.complete(claim_of(OTHER), payload_of(claim_of(OTHER), OTHER), TTL)
    assert recovery()
    assert head_in(server) == (D, ME if ended else OTHER)
    assert twice == ([] if ended else [KEY])
    assert not local.owed_count()


def granted_and_then(monkeypatch: pytest.MonkeyPatch, one: Any, happens: Callable[[], object]) -> None:
    """Let something happen between Redis' consent to a claim and the look whether it can be trusted."""
    granted = one.shared.claim

    def claim(claim: Claim) -> Claimed | Found:
        answer = granted(claim)
        one.shared.nodes.connects.add()
        happens()
        return answer

    monkeypatch.setattr(one.shared, "claim", claim)
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60)


@pytest.mark.parametrize("earlier", [False, True], ids=["first attempt", "after a failed one"])
@pytest.mark.parametrize("policy", OnOutage)
def test_what_an_empty_redis_has_granted_is_given_back_at_once(
    worker: Workers, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, policy: OnOutage, earlier: bool
) -> None:
    """Another host brings back its outcome meanwhile, and finds the key free only then."""
    one = worker()
    one.store.claim(claim_of(OTHER))
    one.store.fail(claim_of(OTHER)) if earlier else one.store.forget(claim_of(OTHER))
    eventually(lambda: one.store._contact().breaker._wanted is False)
    granted_and_then(monkeypatch, one, lambda: None)
    monkeypatch.setattr(one.shared, "servers", lambda: "the server after the restart")
    if policy is not OnOutage.REJECT:
        assert isinstance(one.store.claim(claim_of(ME, on_outage=policy)), Claimed)
        assert head_in(server) == (P, ME)
        return
    with pytest.raises(StoreError) as refused:
        one.store.claim(claim_of(ME, on_outage=policy))
    assert refused.value.outage
    assert head_in(server) == ((F, ME) if earlier else None)


@pytest.mark.parametrize("policy", [OnOutage.REJECT, OnOutage.EXECUTE])
def test_a_claim_that_was_granted_before_others_found_redis_away_is_given_back(
    worker: Workers, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, policy: OnOutage
) -> None:
    one = worker()
    finish(one, OTHER, key_of(1))
    state = one.store._contact().breaker

    def away() -> None:
        for _ in range(2):
            state.failed(StoreError("away", outage=True))

    granted_and_then(monkeypatch, one, away)
    with pytest.raises(StoreError):
        one.store.claim(claim_of(ME, on_outage=policy))
    assert head_in(server) is None


@pytest.mark.parametrize("lost", [False, True], ids=["withdrawn", "the withdrawal is lost"])
@pytest.mark.parametrize("policy", OnOutage)
def test_a_claim_that_cannot_be_trusted_for_want_of_a_connection_is_given_back(
    worker: Workers, server: redis.Redis, monkeypatch: pytest.MonkeyPatch, policy: OnOutage, lost: bool
) -> None:
    one = worker()
    finish(one, OTHER, key_of(1))

    def refuse(*_: object) -> None:
        raise StoreError("all connections to Redis are in use")

    with monkeypatch.context() as meanwhile:
        granted_and_then(meanwhile, one, lambda: None)
        meanwhile.setattr(one.shared, "servers", refuse)
        if lost:
            meanwhile.setattr(one.shared, "withdraw", refuse)
        with pytest.raises(StoreError):
            one.store.claim(claim_of(ME, on_outage=policy))
        assert head_in(server) == ((P, ME) if lost else None)
        assert one.local.is_owed(KEY) == lost
    one.store._contact().breaker.stop()  # the one that sleeps for a minute
    one.store.claim(claim_of(OTHER, key_of(2)))
    eventually(lambda: head_in(server) is None)


def test_an_outcome_that_was_in_somebodys_way_is_tried_again_soon(worker: Workers) -> None:
    one = worker()
    finish(one)
    contact = one.store._contact()
    contact.breaker._again_at, contact.recovery.is_blocked = float("inf"), True
    eventually(lambda: contact.breaker._again_at < 0)
    assert contact.recovery.is_blocked is False


def test_what_cannot_be_written_is_not_tried_more_than_twice_at_once(
    connect: Connect, redis_server: RedisProcess, server: redis.Redis
) -> None:
    local, shared, other = memory(), connect(redis_server.port), connect(redis_server.port)
    recovery, tried = Recovery(local, shared, lambda _key: None), []
    restore = shared.restore
    shared.restore = lambda copies: tried.append(len(copies)) or restore(copies)  # type: ignore[method-assign]
    for number in range(20):
        mine = claim_of(ME, key_of(number))
        local.claim(mine)
        local.complete(mine, payload_of(mine, ME), TTL, owed=True)
        other.claim(claim_of(OTHER, key_of(number)))
    assert not recovery()
    assert tried == [20, 20]
    for number in range(20):
        other.forget(claim_of(OTHER, key_of(number)))
    assert recovery()


def test_a_key_that_cannot_be_learned_does_not_keep_the_probe_from_looking(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    finish(one)
    contact, looks = one.store._contact(), []
    contact.missed.add(key_of(1))
    monkeypatch.setattr(one.shared, "peek", lambda _key: (_ for _ in ()).throw(StoreError("not allowed")))
    monkeypatch.setattr(contact.recovery, "glance", lambda: bool(looks.append(1)))
    eventually(lambda: len(looks) > 3)
    assert contact.missed == {key_of(1)}
