"""The contract of every store: how long things are kept. And plain values, which are kept in the same way."""

from __future__ import annotations

import time

import pytest

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, Store

from .conftest import Place
from .making import DIFFERENT, KEY, LEASE, ME, OTHER, PAST, TTL, claim_of, eventually, payload_of, record_of

SLACK = 5000  # what a busy machine may take between two calls


def kept_for(place: Place, expected: int) -> None:
    """Every tier that has the key keeps it for this long, less what the test took."""
    left = place.left(KEY)
    assert left
    assert all(expected - SLACK < each <= expected for each in left), left


def test_a_claim_is_kept_for_its_retention(place: Place) -> None:
    place.store.claim(claim_of())
    kept_for(place, TTL)


@pytest.mark.parametrize("ending", ["fail", "renew", "claim"])
def test_retention_counts_from_the_claim(place: Place, ending: str) -> None:
    place.store.claim(claim_of(ttl_ms=60_000))
    longer = claim_of(ttl_ms=TTL)
    if ending == "fail":
        assert place.store.fail(longer)
    elif ending == "renew":
        assert place.store.renew([longer]) == [True]
    else:
        assert place.store.claim(longer) == Claimed(1)
    kept_for(place, 60_000)


@pytest.mark.parametrize("ttl_ms", [20_000, 3_600_000])
def test_an_outcome_has_a_retention_of_its_own(place: Place, ttl_ms: int) -> None:
    place.store.claim(claim_of())
    place.store.complete(claim_of(), payload_of(claim_of()), ttl_ms)
    kept_for(place, ttl_ms)
    record = place.store.get(KEY)
    found = place.elsewhere.claim(claim_of(OTHER))
    assert record is not None
    assert isinstance(found, Found)
    assert ttl_ms - SLACK < read_head(record).deadline - found.now_ms <= ttl_ms


@pytest.mark.parametrize("state", [State.PENDING, State.FAILED])
def test_a_new_attempt_has_a_retention_of_its_own(place: Place, state: State) -> None:
    place.elsewhere.set(KEY, record_of(state, deadline=PAST), 20_000)
    assert place.store.claim(claim_of()) == Claimed(2)
    kept_for(place, TTL)


def test_completing_again_does_not_prolong_an_outcome(place: Place) -> None:
    place.store.claim(claim_of())
    for ttl_ms in (20_000, 3_600_000):
        assert place.store.complete(claim_of(), payload_of(claim_of()), ttl_ms)
    kept_for(place, 20_000)


@pytest.mark.parametrize("renewed", [False, True])
def test_a_retention_shorter_than_the_lease_does_not_expire_a_running_claim(place: Place, renewed: bool) -> None:
    mine = claim_of(ttl_ms=20)
    place.store.claim(claim_of(ttl_ms=20, lease_ms=1000) if renewed else mine)
    if renewed:
        assert place.store.renew([mine]) == [True]
    kept_for(place, LEASE)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        assert isinstance(place.elsewhere.claim(claim_of(OTHER)), Found)


@pytest.mark.parametrize("ended", [None, "fail", "complete"])
def test_after_its_retention_a_key_is_new(place: Place, ended: str | None) -> None:
    mine, stranger = claim_of(lease_ms=50, ttl_ms=150), claim_of(OTHER, fingerprint=DIFFERENT)
    place.store.claim(mine)
    began = time.monotonic()
    if ended == "complete":
        began = time.monotonic()
        place.store.complete(mine, payload_of(mine), 150)
    elif ended == "fail":
        place.store.fail(mine)

    def taken() -> Claim | None:
        return stranger if place.elsewhere.claim(stranger) == Claimed(1) else None

    eventually(taken)
    assert time.monotonic() - began > 0.14
    assert isinstance(place.store.claim(claim_of(ME)), Found)


VALUES = [b"", b"0", b"null", b"false", b"\x00", b"\x01J[]", bytes(range(256)), b"\r\n$-1\r\n", b"x" * 100_000]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value[:12]))
def test_a_value_comes_back_as_it_was_however_empty_it_looks(place: Place, value: bytes) -> None:
    place.store.set(KEY, value, TTL)
    for store in (place.store, place.elsewhere):
        got = store.get(KEY)
        assert type(got) is bytes
        assert got == value
    kept_for(place, TTL)
    assert place.elsewhere.delete(KEY) is True
    assert place.store.get(KEY) is None


def test_what_was_never_set_is_none(store: Store) -> None:
    assert store.get(KEY) is None
    assert store.delete(KEY) is False


def test_a_deleted_value_is_gone_for_all(place: Place) -> None:
    place.store.set(KEY, b"value", TTL)
    assert place.store.delete(KEY) is True
    assert place.store.delete(KEY) is False
    assert place.store.get(KEY) is place.elsewhere.get(KEY) is None


def test_the_last_value_set_counts_with_its_own_retention(place: Place) -> None:
    place.store.set(KEY, b"first", TTL)
    place.elsewhere.set(KEY, b"second", 3 * TTL)
    place.store.set(KEY, b"third", 20_000)
    assert place.store.get(KEY) == place.elsewhere.get(KEY) == b"third"
    kept_for(place, 20_000)


def test_a_value_expires(place: Place) -> None:
    place.store.set(KEY, b"value", 100)
    began = time.monotonic()
    eventually(lambda: place.store.get(KEY) is None)
    assert time.monotonic() - began > 0.09
    assert place.elsewhere.get(KEY) is None
    assert place.store.delete(KEY) is False


def test_an_operator_can_free_a_key_by_deleting_it(place: Place) -> None:
    place.store.claim(claim_of(OTHER))
    assert place.store.delete(KEY) is True
    assert place.elsewhere.claim(claim_of(ME, fingerprint=DIFFERENT)) == Claimed(1)


def test_a_healthy_store_reports_no_outage(place: Place) -> None:
    place.store.claim(claim_of())
    report = place.store.report()
    assert report.outage is None
    assert report.waiting == 0
    assert report.redis_available is (place.client is not None)
    assert report.cache_type == ("redis" if place.client else "memory")
    assert report.in_memory_size == (1 if place.local else 0)
