"""What a local tier offers beside the contract of all stores: debts, copies and notes; in memory and in a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest

from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claim, Claimed, Found, StoreFull
from flask_idempotent.stores.local import Debt, LocalStore, LocalTier
from flask_idempotent.stores.shared import SharedStore

from .conftest import memory
from .making import (
    DIFFERENT,
    KEY,
    LEASE,
    ME,
    OTHER,
    TTL,
    Clock,
    at_once,
    claim_of,
    payload_of,
    record_of,
)

DAY = 86_400_000


@pytest.fixture(params=["memory", "shared"])
def tier(request: pytest.FixtureRequest, clock: Clock, shared: Callable[..., SharedStore]) -> LocalStore:
    return memory(10_000, clock) if request.param == "memory" else shared(clock=clock)


def numbered(number: int) -> str:
    return f"idempotency:{{{number:04}}}"


def owners(tier: LocalTier) -> list[bytes]:
    return [debt.owner for debt in tier.debts()]


def do_owed(tier: LocalTier, event: str, claim: Claim) -> object:
    if event == "claim":
        return tier.claim(claim, owed=True)
    if event == "renew":
        return tier.renew([claim], owed=True)
    if event == "complete":
        return tier.complete(claim, payload_of(claim), TTL, owed=True)
    return getattr(tier, event)(claim, owed=True)


EVENTS = ["claim", "renew", "complete", "fail", "forget"]


@pytest.mark.parametrize("event", EVENTS)
def test_a_change_that_is_owed_is_noted_as_a_debt(tier: LocalTier, clock: Clock, event: str) -> None:
    mine = claim_of()
    if event != "claim":
        tier.claim(mine)
    assert tier.debts() == []
    do_owed(tier, event, mine)
    (debt,) = tier.debts()
    assert debt == Debt(KEY, ME, LEASE, debt.serial, clock.now + TTL)
    assert (tier.owed_count(), tier.is_owed(KEY), tier.is_owed(numbered(1))) == (1, True, False)


@pytest.mark.parametrize("event", EVENTS)
def test_a_change_that_is_refused_owes_nothing(tier: LocalTier, event: str) -> None:
    tier.claim(claim_of(OTHER))
    answer = do_owed(tier, event, claim_of(ME, fingerprint=DIFFERENT))
    assert isinstance(answer, Found) or answer in (False, [False])
    assert (tier.debts(), tier.owed_count(), tier.is_owed(KEY)) == ([], 0, False)


@pytest.mark.parametrize("event", EVENTS)
def test_without_being_asked_nothing_is_owed(tier: LocalTier, event: str) -> None:
    mine = claim_of()
    tier.claim(mine)
    if event == "renew":
        tier.renew([mine])
    elif event == "complete":
        tier.complete(mine, payload_of(mine), TTL)
    elif event != "claim":
        getattr(tier, event)(mine)
    assert tier.debts() == []


def test_success_is_owed_also_where_nothing_had_to_be_written(tier: LocalTier) -> None:
    """The reply to the first try was lost, or the record itself: Redis may know otherwise."""
    mine = claim_of()
    assert tier.forget(mine, owed=True) is True
    assert owners(tier) == [ME]
    tier.claim(mine)
    tier.settle(tier.debts()[0])
    assert tier.claim(mine, owed=True) == Claimed(1)
    assert owners(tier) == [ME]


def test_each_renewal_of_many_is_owed_by_its_own_merit(tier: LocalTier) -> None:
    mine, taken = claim_of(key=numbered(1)), claim_of(key=numbered(2))
    tier.claim(mine)
    tier.claim(taken._replace(owner=OTHER))
    assert tier.renew([taken, mine], owed=True) == [False, True]
    assert [(debt.key, debt.owner) for debt in tier.debts()] == [(mine.key, ME)]


def test_a_plain_value_is_owed_in_nobodys_name(tier: LocalTier, clock: Clock) -> None:
    tier.set(KEY, b"value", 5000, owed=True)
    (first,) = tier.debts()
    assert (first.key, first.owner, first.expires) == (KEY, b"", clock.now + 5000)
    assert tier.delete(KEY, owed=True) is True
    (second,) = tier.debts()
    assert (second.key, second.owner, second.expires) == (KEY, b"", clock.now + DAY)
    assert second.serial > first.serial
    assert tier.delete(KEY, owed=True) is False  # what is not here may be there
    assert tier.owed_count() == 1


def test_a_debt_can_be_noted_alone(tier: LocalTier, clock: Clock) -> None:
    tier.owe(claim_of(ttl_ms=1000, lease_ms=2000))
    tier.owe(claim_of(OTHER, ttl_ms=1000, lease_ms=2000), ttl_ms=7000)
    assert [(debt.owner, debt.lease_ms, debt.expires - clock.now) for debt in tier.debts()] == [
        (ME, 2000, 2000),
        (OTHER, 2000, 7000),
    ]
    assert tier.get(KEY) is None


def test_every_request_under_a_key_has_a_debt_of_its_own_and_only_one(tier: LocalTier) -> None:
    for _ in range(3):
        tier.owe(claim_of(ME))
        tier.owe(claim_of(OTHER))
    assert owners(tier) == [ME, OTHER]
    assert tier.owed_count() == 2
    tier.settle(tier.debts()[0])
    assert tier.is_owed(KEY)
    tier.settle(tier.debts()[0])
    assert not tier.is_owed(KEY)


def test_a_change_makes_a_new_debt_which_an_older_one_does_not_settle(tier: LocalTier) -> None:
    tier.claim(claim_of(), owed=True)
    (older,) = tier.debts()
    tier.complete(claim_of(), payload_of(claim_of()), TTL, owed=True)
    (newer,) = tier.debts()
    assert newer.serial > older.serial
    assert tier.settle(older) is False
    assert tier.debts() == [newer]
    assert tier.settle(newer) is True
    assert tier.settle(newer) is False
    assert (tier.debts(), tier.is_owed(KEY)) == ([], False)


def test_a_number_is_not_given_twice_though_its_debt_is_settled(tier: LocalTier) -> None:
    tier.owe(claim_of())
    (settled,) = tier.debts()
    tier.settle(settled)
    tier.owe(claim_of())
    assert tier.settle(settled) is False
    assert tier.owed_count() == 1


def test_debts_are_read_in_the_order_in_which_they_were_noted_page_by_page(tier: LocalTier) -> None:
    for number in (3, 1, 2, 0, 4):
        tier.owe(claim_of(key=numbered(number)))
    tier.owe(claim_of(key=numbered(1)))  # noted anew: to the end
    tier.settle(tier.debts()[2])
    pages, after = [], 0
    while page := tier.debts(after, 2):
        pages.append([debt.key for debt in page])
        after = page[-1].serial
    assert pages == [[numbered(3), numbered(2)], [numbered(4), numbered(1)]]


def test_a_debt_ends_with_what_it_is_about(tier: LocalTier, clock: Clock) -> None:
    tier.claim(claim_of(key=numbered(1), ttl_ms=1000, lease_ms=10), owed=True)
    tier.claim(claim_of(key=numbered(2), ttl_ms=10, lease_ms=2000), owed=True)
    tier.set(numbered(3), b"value", 3000, owed=True)
    for passed, left in ((999, 3), (1, 2), (999, 2), (1, 1), (999, 1), (1, 0)):
        clock.advance(passed)
        assert (len(tier.debts()), tier.owed_count()) == (left, left)
        assert tier.is_owed(numbered(1)) is (left > 2)


def test_the_outcome_of_a_longer_retention_is_owed_as_long(tier: LocalTier, clock: Clock) -> None:
    mine = claim_of()
    tier.claim(mine, owed=True)
    tier.complete(mine, payload_of(mine), 5 * TTL, owed=True)
    assert tier.debts()[0].expires == clock.now + 5 * TTL


def test_of_many_threads_that_settle_a_debt_one_does(tier: LocalTier) -> None:
    for _ in range(5):
        tier.owe(claim_of())
        assert sorted(at_once([partial(tier.settle, tier.debts()[0])] * 8)) == [False] * 7 + [True]


def test_copies_are_read_page_by_page_the_latest_keys_first_with_what_they_have_left(
    tier: LocalTier, clock: Clock
) -> None:
    for number in (4, 0, 3, 1):
        tier.set(numbered(number), b"value %d" % number, TTL + number)
    tier.claim(claim_of(key=numbered(2), ttl_ms=10 * TTL))
    tier.set(numbered(9), b"short", 5)
    tier.set(numbered(0), b"another", TTL)
    clock.advance(5)
    pages, before = [], 0
    while before is not None:
        page, before = tier.copies(before, 2)
        pages.append(page)
    assert [key for page in pages for key, _, _ in page] == [numbered(number) for number in (2, 1, 3, 0, 4)]
    assert max(map(len, pages)) == 2
    assert pages[0][0][1:] == tier.take(numbered(2))
    assert pages[1] == [(numbered(1), b"value 1", TTL + 1 - 5), (numbered(3), b"value 3", TTL + 3 - 5)]
    assert (numbered(0), b"another", TTL - 5) in pages[2]


def test_copies_begin_anew_with_what_there_is_then(tier: LocalTier) -> None:
    assert tier.copies() == ([], None)
    tier.set(numbered(2), b"", TTL)
    tier.set(numbered(3), b"", TTL)
    assert [key for key, _, _ in tier.copies(0, 1).records] == [numbered(3)]
    tier.set(numbered(1), b"", TTL)
    assert [key for key, _, _ in tier.copies(0, 5).records] == [numbered(1), numbered(3), numbered(2)]


def test_what_is_removed_while_copies_are_read_leaves_the_others(tier: LocalTier) -> None:
    for number in range(6):
        tier.set(numbered(number), b"", TTL)
    _, before = tier.copies(0, 2)
    assert before is not None
    for number in (4, 3):
        tier.delete(numbered(number))
    tier.set(numbered(7), b"", TTL)
    assert [key for key, _, _ in tier.copies(before, 5).records] == [numbered(2), numbered(1), numbered(0)]


def test_copies_are_dropped_but_what_runs_and_what_is_owed_stays(tier: LocalTier, clock: Clock) -> None:
    kinds = ("done", "failed", "value", "lapsed", "running", "damaged")
    claims = {kind: claim_of(key=kind, lease_ms=10 if kind == "lapsed" else LEASE) for kind in kinds}
    for prefix in ("", "owed "):
        for kind, claim in claims.items():
            named = claim._replace(key=prefix + kind)
            if kind in ("value", "damaged"):
                tier.set(named.key, b"\x01J[]" if kind == "value" else b"\xffX", TTL)
            else:
                tier.claim(named)
            if kind == "done":
                tier.complete(named, payload_of(named), TTL)
            elif kind == "failed":
                tier.fail(named)
            if prefix:
                tier.owe(named)
    clock.advance(10)

    tier.drop_copies()

    assert {key for key, _, _ in tier.copies().records} == {"running", *(f"owed {kind}" for kind in kinds)}


def test_thousands_of_copies_are_dropped_and_none_that_stays(tier: LocalTier) -> None:
    for number in range(2500):
        tier.set(numbered(number), b"", TTL, owed=number % 1000 == 7)
    tier.drop_copies()
    assert [key for key, _, _ in tier.copies().records] == [numbered(2007), numbered(1007), numbered(7)]
    assert tier.report().in_memory_size == 3


def test_a_note_is_kept_beside_the_records(tier: LocalTier, clock: Clock) -> None:
    assert tier.recall("epoch") is None
    tier.remember("epoch", b"one")
    tier.remember("epoch", b"")
    tier.remember("other", b"\x00two")
    clock.advance(1000 * DAY)
    tier.drop_copies()
    assert (tier.recall("epoch"), tier.recall("other")) == (b"", b"\x00two")
    assert (tier.report().in_memory_size, tier.copies(), tier.get("epoch")) == (0, ([], None), None)


def filled(tier: LocalTier) -> int:
    """Fill a small tier with settled records of growing retention, and then with small claims, until it refuses.

    :return: how many settled records it holds.
    """
    settled = until_full(lambda number: tier.set(numbered(number), record_of(State.DONE) + bytes(1000), TTL + number))
    until_full(lambda number: tier.claim(claim_of(key=f"idempotency:{{small {number}}}")))
    assert settled > 40
    return settled


def until_full(write: Callable[[int], object]) -> int:
    for number in range(10_000):
        try:
            write(number)
        except StoreFull:
            return number
    pytest.fail("it is never full")


@pytest.fixture(params=["memory", "shared"])
def small(request: pytest.FixtureRequest, clock: Clock, shared: Callable[..., SharedStore]) -> LocalStore:
    return memory(50, clock) if request.param == "memory" else shared(limit_bytes=300_000, clock=clock)


def test_one_at_a_time_has_the_turn(tier: LocalTier, clock: Clock) -> None:
    assert tier.take_turn("sweeping", ME, 1000)
    assert not tier.take_turn("sweeping", OTHER, 1000)
    assert tier.take_turn("dusting", OTHER, 1000)
    clock.advance(999)
    assert not tier.take_turn("sweeping", OTHER, 1000)
    assert tier.take_turn("sweeping", ME, 1000)
    clock.advance(999)
    assert not tier.take_turn("sweeping", OTHER, 1000)
    clock.advance(1)
    assert tier.take_turn("sweeping", OTHER, 1000)
    assert not tier.take_turn("sweeping", ME, 1000)
    assert tier.take_turn("sweeping", OTHER, 0)
    assert tier.take_turn("sweeping", ME, 1000)


def test_a_full_tier_gives_up_settled_records_that_may_be_dropped_and_no_others(small: LocalTier) -> None:
    small.claim(claim_of(key=numbered(9000)))
    third = filled(small) // 3
    for number in range(third):
        small.owe(claim_of(key=numbered(number)))
    small.allow_dropping(lambda marks: [key for key in marks if not numbered(third) <= key < numbered(2 * third)])
    running = record_of(State.PENDING) + bytes(1000)
    given = until_full(lambda number: small.set(numbered(1000 + number), running, TTL))
    assert third // 2 < given <= third + 5
    assert all(small.get(numbered(number)) for number in range(2 * third))
    assert all(small.get(numbered(1000 + number)) for number in range(given))
    assert small.get(numbered(9000)) is not None


def test_a_full_tier_that_may_drop_nothing_refuses_new_keys_and_lets_the_others_end(small: LocalTier) -> None:
    running = [claim_of(key=numbered(9000 + number)) for number in range(5)]
    for claim in running:
        small.claim(claim)
    filled(small)
    small.allow_dropping(lambda _marks: ())
    with pytest.raises(StoreFull) as caught:
        small.claim(claim_of(OTHER, "idempotency:{new}"))
    assert caught.value.outage is False
    assert small.renew(running, owed=True) == [True] * 5
    for claim in running[:3]:
        assert small.complete(claim, payload_of(claim, os.urandom(8000)), TTL, owed=True)
    assert small.fail(running[3], owed=True)
    assert small.forget(running[4], owed=True)
    for claim, state in zip(running, [State.DONE] * 3 + [State.FAILED], strict=False):
        record = small.get(claim.key)
        assert record is not None
        assert read_head(record).state is state


def test_a_full_tier_puts_no_lost_record_back_but_nobody_else_has_the_key(small: LocalTier) -> None:
    kept, lost = claim_of(key=numbered(9000)), claim_of(key=numbered(9001))
    small.claim(kept)
    filled(small)
    assert small.renew([lost, kept], owed=True) == [True, True]
    assert small.get(lost.key) is None
    assert [debt.key for debt in small.debts()] == [kept.key]


def test_what_has_expired_makes_room_first(small: LocalTier, clock: Clock) -> None:
    held = filled(small)
    asked: list[str] = []
    small.allow_dropping(lambda marks: asked.extend(marks) or marks)
    clock.advance(TTL + held // 2)
    for number in range(1000, 1000 + held // 4):
        small.set(numbered(number), record_of(State.DONE) + bytes(1000), TTL)
    assert not asked
    assert all(small.get(numbered(number)) is not None for number in range(held // 2 + 1, held))
