"""The local tier before Redis, while Redis comes and goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
import redis

from flask_idempotent.core.guard import Guard, Unprotected
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, OnOutage, StoreError, StoreFull, Terms
from flask_idempotent.stores import breaker
from flask_idempotent.stores.absent import NoTier
from flask_idempotent.stores.memory import MemoryStore
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.tiered import TieredStore

from ..servers.standalone import RedisProcess
from .conftest import Connect, memory
from .making import DIFFERENT, KEY, ME, OTHER, SAME, THIRD, TTL, alive, at_once, claim_of, eventually, payload_of
from .test_contract import do
from .working import Workers, answered_by, cut_off, finish, head_in, key_of, recovered

pytestmark = pytest.mark.redis
REFUSING = (OnOutage.REJECT, OnOutage.EXECUTE)


def test_two_workers_share_claims_and_outcomes(worker: Workers) -> None:
    first, second = worker(), worker()
    assert first.store.claim(claim_of()) == Claimed(1)
    assert isinstance(second.store.claim(claim_of(OTHER)), Found)
    assert first.store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
    assert answered_by(first) == answered_by(second) == ME


@pytest.mark.parametrize("at", ["the one that made it", "the one that replayed it"])
def test_a_finished_record_replays_without_redis(worker: Workers, at: str) -> None:
    first, second = worker(), worker()
    finish(first)
    assert answered_by(second) == ME
    one = first if at == "the one that made it" else second
    asked = one.link.asked(b"EVALSHA")
    assert answered_by(one) == ME
    assert one.link.asked(b"EVALSHA") == asked
    cut_off(one)
    assert answered_by(one) == ME
    found = one.store.claim(claim_of(OTHER, fingerprint=DIFFERENT, on_outage=OnOutage.REJECT))
    assert isinstance(found, Found)


def test_a_replayed_record_is_kept_here_no_longer_than_on_redis(worker: Workers) -> None:
    first, second = worker(), worker()
    finish(first, ttl_ms=60_000)
    assert answered_by(second) == ME
    taken = second.local.take(KEY)
    assert taken is not None
    assert 50_000 < taken[1] <= 60_000


@pytest.mark.parametrize("state", ["running", "failed", "foreign"])
def test_what_may_still_change_elsewhere_is_not_kept_here(worker: Workers, state: str) -> None:
    first, second = worker(), worker()
    theirs = claim_of(OTHER, fingerprint=DIFFERENT if state == "foreign" else SAME)
    first.store.claim(theirs)
    mine = claim_of()
    if state == "failed":
        first.store.fail(theirs)
        assert second.store.claim(mine) == Claimed(2)
        assert second.store.forget(mine)
    else:
        assert isinstance(second.store.claim(mine), Found)
    assert second.local.get(KEY) is None
    first.store.forget(theirs)
    assert second.store.claim(mine) == Claimed(1)


@pytest.mark.parametrize("policy", OnOutage)
def test_a_start_without_redis(policy: OnOutage, worker: Workers) -> None:
    one = worker()
    one.link.cut()
    for number in range(5):
        mine = claim_of(key=key_of(number), on_outage=policy)
        if policy is OnOutage.LOCAL:
            assert one.store.claim(mine) == Claimed(1)
            assert isinstance(one.store.claim(claim_of(OTHER, mine.key)), Found)
            assert one.store.complete(mine, payload_of(mine), TTL)
        else:
            with pytest.raises(StoreError) as caught:
                one.store.claim(mine)
            assert caught.value.outage
    report = one.store.report()
    assert (report.cache_type, report.redis_available, bool(report.outage)) == ("memory", False, True)
    recovered(one)
    assert one.store.report().cache_type == "redis"
    assert one.store.claim(claim_of()) == Claimed(1)


@pytest.mark.parametrize("policy", REFUSING)
def test_a_refused_key_leaves_nothing_behind(worker: Workers, server: redis.Redis, policy: OnOutage) -> None:
    one = worker()
    cut_off(one)
    for owner in (ME, OTHER, THIRD):
        with pytest.raises(StoreError):
            one.store.claim(claim_of(owner, on_outage=policy))
    assert one.local.get(KEY) is None
    recovered(one)
    assert server.get(KEY) is None
    assert one.store.claim(claim_of(OTHER, fingerprint=DIFFERENT)) == Claimed(1)


@pytest.mark.parametrize("attempt", [1, 2])
def test_what_a_restarted_redis_grants_too_early_is_given_back(
    new_redis: Callable[..., RedisProcess], connect: Connect, monkeypatch: pytest.MonkeyPatch, attempt: int
) -> None:
    """Without a local tier nobody else would: the key would stay taken until the end of the lease."""
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60.0)
    server = new_redis(persistent=True).start()
    store = TieredStore(NoTier(), connect(server.port, of=partial(RedisStore, alone=True)))
    store.claim(claim_of(OTHER))
    do(store, "fail" if attempt == 2 else "forget", claim_of(OTHER))
    server.stop()
    server.start()
    mine = claim_of(on_outage=OnOutage.REJECT)
    with pytest.raises(StoreError, match="a moment ago"):
        store.claim(mine)
    with server.client() as client:
        assert head_in(client) == (None if attempt == 1 else (State.FAILED, ME))


def test_each_route_has_its_own_policy_in_one_outage(worker: Workers) -> None:
    one = worker()
    cut_off(one)
    guard = Guard(one.store, lambda *_: None)
    terms = {policy: Terms(lease_ms=30_000, ttl_ms=TTL, on_outage=policy) for policy in OnOutage}
    run = guard.begin(key_of(1), SAME, terms[OnOutage.LOCAL])
    assert guard.forget(run)
    with pytest.raises(StoreError):
        guard.begin(key_of(2), SAME, terms[OnOutage.REJECT])
    assert guard.begin(key_of(3), SAME, terms[OnOutage.EXECUTE]) == Unprotected()


@pytest.mark.parametrize("event", ["complete", "fail", "forget"])
@pytest.mark.parametrize("policy", OnOutage)
def test_a_request_that_runs_when_redis_is_lost_ends_well(
    worker: Workers, server: redis.Redis, policy: OnOutage, event: str
) -> None:
    one, other = worker(), worker()
    mine = claim_of(on_outage=policy)
    one.store.claim(mine)
    cut_off(one)
    assert one.store.renew([mine]) == [True]
    assert do(one.store, event, mine) is True
    assert head_in(server) == (State.PENDING, ME)

    recovered(one)
    states = {"complete": (State.DONE, ME), "fail": (State.FAILED, ME), "forget": None}
    assert head_in(server) == states[event]
    if event == "complete":
        assert answered_by(other) == answered_by(one)
    else:
        assert other.store.claim(claim_of(OTHER)) == Claimed(2 if event == "fail" else 1)


def test_duplicates_do_not_run_on_this_host_while_redis_is_away(worker: Workers) -> None:
    one = worker()
    one.store.claim(claim_of())
    cut_off(one)
    assert isinstance(one.store.claim(claim_of(OTHER)), Found)
    one.store.complete(claim_of(), payload_of(claim_of(), ME), TTL)
    assert answered_by(one) == ME
    claims = [claim_of(bytes([i]) * 16, key_of(1)) for i in range(50)]
    answers = at_once([partial(one.store.claim, claim) for claim in claims])
    assert sum(isinstance(answer, Claimed) for answer in answers) == 1


def test_a_duplicate_that_waits_here_needs_no_redis(worker: Workers) -> None:
    one = worker()
    one.store.claim(claim_of())
    cut_off(one)
    waited, completed = at_once(
        [
            partial(one.store.wait, KEY, 5000),
            lambda: (time.sleep(0.05), one.store.complete(claim_of(), payload_of(claim_of()), TTL))[1],
        ]
    )
    assert completed is True
    assert isinstance(waited, Found)
    assert read_head(waited.record).state is State.DONE


def test_a_lease_that_was_renewed_in_an_outage_is_alive_afterwards(worker: Workers, server: redis.Redis) -> None:
    one, other = worker(), worker()
    mine = claim_of(lease_ms=300)
    one.store.claim(mine)
    cut_off(one)
    first_end = read_head(server.get(KEY)).deadline
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert one.store.renew([mine]) == [True]
        time.sleep(0.02)
    one.link.open()
    eventually(lambda: read_head(server.get(KEY)).deadline > first_end)
    assert isinstance(other.store.claim(claim_of(OTHER)), Found)


def test_the_breaker_opens_after_two_failures_and_leaves_redis_alone(worker: Workers) -> None:
    one = worker(timeout=0.25)
    one.store.claim(claim_of())
    one.link.freeze()
    for number in (1, 2):
        one.store.claim(claim_of(key=key_of(number)))
    asked = one.link.asked(b"EVALSHA") + one.link.asked(b"GET")
    began = time.monotonic()
    for number in range(3, 60):
        mine = claim_of(key=key_of(number))
        assert one.store.claim(mine) == Claimed(1)
        assert one.store.renew([mine]) == [True]
        assert one.store.complete(mine, payload_of(mine), TTL)
        assert one.store.get("idempotency:{value}") is None
        one.store.report()
    assert one.link.asked(b"EVALSHA") + one.link.asked(b"GET") == asked
    assert time.monotonic() - began < 57 * 0.25


def test_many_who_meet_a_silent_redis_at_once_do_not_wait_for_it_one_after_the_other(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts while Redis is frozen."""
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60)
    one = worker(timeout=0.25)
    one.link.freeze()
    claims = [claim_of(key=key_of(number)) for number in range(30)]
    assert at_once([partial(one.store.claim, claim) for claim in claims]) == [Claimed(1)] * 30
    assert one.link.asked(b"INFO") <= 2


def test_one_failure_alone_does_not_open_the_breaker(worker: Workers, server: redis.Redis) -> None:
    one = worker()
    one.link.cut()
    one.store.claim(claim_of())
    one.link.open()
    assert one.store.claim(claim_of(OTHER, key_of(1))) == Claimed(1)
    assert head_in(server, key_of(1)) == (State.PENDING, OTHER)
    eventually(lambda: head_in(server) == (State.PENDING, ME))


def test_an_outage_is_one_line_in_the_log_and_its_end_another(
    worker: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    one = worker()
    assert one.store.report().redis_available, "what is said of the server itself is said by now"
    caplog.clear()
    caplog.set_level(logging.INFO, "flask_idempotent")
    one.link.cut()
    at_once([partial(one.store.claim, claim_of(bytes([i]) * 16, key_of(i))) for i in range(30)])
    for i in range(30):
        one.store.complete(claim_of(bytes([i]) * 16, key_of(i)), b"payload", TTL)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    recovered(one)
    eventually(lambda: len(caplog.records) > 1)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


def test_one_thread_looks_for_redis_from_the_first_claim_until_the_store_is_closed(worker: Workers) -> None:
    one = worker()
    assert alive("probe") == []
    one.store.claim(claim_of())
    assert len(alive("probe")) == 1
    cut_off(one)
    one.store.claim(claim_of(key=key_of(1)))
    recovered(one)
    assert len(alive("probe")) == 1
    one.store.close()
    eventually(lambda: not alive("probe"))


@pytest.fixture
def stranger(connect: Connect, redis_server: RedisProcess, server: redis.Redis) -> Iterator[TieredStore]:
    """A worker whose password Redis does not know."""
    server.config_set("requirepass", "right")
    store = TieredStore(memory(), connect(redis_server.port, username="default", password="wrong"))
    yield store
    server.config_set("requirepass", "")
    store.close()
    eventually(lambda: not alive("probe"))


@pytest.mark.parametrize("policy", OnOutage)
def test_a_wrong_password_is_no_outage_for_any_policy(stranger: TieredStore, policy: OnOutage) -> None:
    for number in range(5):
        with pytest.raises(StoreError) as caught:
            stranger.claim(claim_of(key=key_of(number), on_outage=policy))
        assert caught.value.outage is False
    report = stranger.report()
    assert report.refused
    assert report.in_memory_size == 0


def test_nothing_is_owed_to_a_redis_that_refused_it(stranger: TieredStore) -> None:
    """Nothing was recorded and nothing was applied; and what is owed must not grow with every refused request."""
    for number in range(5):
        with pytest.raises(StoreError):
            stranger.claim(claim_of(key=key_of(number)))
    assert stranger.report().waiting == 0


def test_a_full_local_tier_makes_room_by_what_redis_has_too(worker: Workers) -> None:
    one = worker(threshold=5)
    for number in range(12):
        finish(one, key=key_of(number))
    assert one.store.report().in_memory_size == 5
    assert [answered_by(one, key_of(number)) for number in range(12)] == [ME] * 12


def test_a_full_local_tier_drops_nothing_that_runs_or_that_redis_has_not(worker: Workers) -> None:
    one = worker(threshold=5)
    one.store.claim(claim_of(key=key_of(0)))
    finish(one, key=key_of(1))
    cut_off(one)
    for number in (2, 3):
        finish(one, key=key_of(number))
    one.store.set(key_of(4), b"value", TTL)
    with suppress(StoreFull):
        one.store.claim(claim_of(key=key_of(5)))
    with pytest.raises(StoreFull):
        one.store.claim(claim_of(key=key_of(6)))
    assert [answered_by(one, key_of(number)) for number in (2, 3)] == [ME, ME]
    assert isinstance(one.store.claim(claim_of(OTHER, key_of(0))), Found)
    assert one.store.get(key_of(4)) == b"value"


def test_a_full_local_tier_forgets_no_outcome_while_redis_is_away(worker: Workers) -> None:
    one = worker(threshold=5)
    for number in range(5):
        finish(one, key=key_of(number))
    cut_off(one)
    with pytest.raises(StoreFull):
        one.store.claim(claim_of(key=key_of(5)))
    assert [answered_by(one, key_of(number)) for number in range(5)] == [ME] * 5


def test_many_old_requests_that_still_run_do_not_keep_a_full_tier_from_making_room(worker: Workers) -> None:
    one = worker(threshold=60)
    for number in range(30):
        one.store.claim(claim_of(key=key_of(number)))
    for number in range(30, 60):
        finish(one, key=key_of(number), ttl_ms=2 * TTL)
    assert one.store.claim(claim_of(key=key_of(60))) == Claimed(1)


def test_what_redis_refused_to_a_late_worker_is_not_replayed_here(worker: Workers) -> None:
    late, other = worker(), worker()
    mine = claim_of(lease_ms=1)
    late.store.claim(mine)
    eventually(lambda: isinstance(other.store.claim(claim_of(OTHER)), Claimed))
    other.store.complete(claim_of(OTHER), payload_of(claim_of(OTHER), OTHER), TTL)

    assert late.store.complete(mine, payload_of(mine, ME), TTL) is False

    assert answered_by(other) == answered_by(late) == OTHER


def test_a_value_that_was_set_is_what_is_read_next(worker: Workers) -> None:
    one = worker()
    one.store.set(KEY, b"old", TTL)
    one.link.cut()
    one.store.set(KEY, b"new", TTL)
    one.link.open()
    assert one.store.get(KEY) == b"new"


def test_a_real_redis_may_come_later_than_the_app(new_redis: Callable[..., RedisProcess], connect: Connect) -> None:
    server = new_redis()
    store = TieredStore(memory(), connect(server.port, 0.25))
    for number in range(3):
        store.claim(claim_of(key=key_of(number)))
    assert store.report().outage
    server.start()
    eventually(lambda: store.report().redis_available and not store.report().waiting)
    with server.client() as client:
        assert sorted(client.keys()) == [key_of(number).encode() for number in range(3)]
    store.close()
    eventually(lambda: not alive("probe"))


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_what_redis_has_forgotten_is_forgotten_here_when_it_does_not_run(
    worker: Workers, server: redis.Redis, state: str
) -> None:
    """Another host was refused under the key, or an operator has settled it there: it is free."""
    one, other = worker(), worker()
    mine = claim_of(lease_ms=50, resume=False)
    one.store.claim(mine)
    if state == "failed":
        one.store.fail(mine)
        retry = claim_of(OTHER)
        assert other.store.claim(retry) == Claimed(2)
        other.store.forget(retry)
    else:
        server.delete(KEY)
    anew = claim_of(THIRD, fingerprint=DIFFERENT, resume=False)
    eventually(lambda: one.store.claim(anew) == Claimed(1))


def test_what_runs_here_is_not_forgotten_with_redis(worker: Workers, server: redis.Redis) -> None:
    one = worker()
    one.store.claim(claim_of())
    server.flushall()
    assert isinstance(one.store.claim(claim_of(OTHER)), Found)
    assert isinstance(one.store.claim(claim_of(OTHER, fingerprint=DIFFERENT)), Found)


class Deaf(MemoryStore):
    """A local tier that cannot be told outcomes, like a file that somebody holds."""

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int, *, owed: bool = False) -> bool:
        raise StoreError("the file is held by another process")


def test_an_outcome_that_the_local_tier_has_missed_is_told_to_it_before_redis_can_be_lost(worker: Workers) -> None:
    """Else the claim that is left there ends with its lease, and in an outage the request runs again."""
    one = worker(local_of=Deaf)
    finish(one)
    eventually(lambda: (record := one.local.get(KEY)) and read_head(record).state is State.DONE)
    cut_off(one)
    assert answered_by(one) == ME


def test_a_duplicate_finds_the_outcome_that_the_local_tier_has_missed(
    worker: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "PROBE_SECONDS", 60)  # so that the probe does not come first
    one = worker(local_of=Deaf)
    finish(one)
    assert answered_by(one) == ME
    cut_off(one)
    assert answered_by(one) == ME
