"""The contract of every store: what each request may do to what stands under its key."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from flask_idempotent.core.machine import Busy, Mismatch, Replay, Unknown, judge
from flask_idempotent.core.record import (
    DEADLINE_SIZE,
    HEAD_SIZE,
    MAX_ATTEMPT,
    Head,
    NewerRecord,
    State,
    UnreadableRecord,
    read_head,
)
from flask_idempotent.core.store import Claim, Claimed, Found, Store

from .conftest import Place
from .making import (
    DIFFERENT,
    FUTURE,
    KEY,
    LEASE,
    ME,
    OTHER,
    PAST,
    SAME,
    THIRD,
    TTL,
    claim_of,
    eventually,
    payload_of,
    record_of,
)

EVENTS = ("claim", "renew", "complete", "fail", "forget")
P, F, D = State.PENDING, State.FAILED, State.DONE

# What a request finds, and what becomes of it. A number: the claim is granted as that attempt. A letter: the state in
# which the record then stands as this request's own. "-": it is gone. "=": success, and nothing changes. "!": it is
# refused, and not a byte changes.
# fmt: off
TABLE = {                #                                            claim renew complete fail forget
    "absent":            (None,                                          "1  P  D  F  -"),
    "own":               (record_of(P, ME),                              "=1 P  D  F  -"),
    "own lapsed":        (record_of(P, ME, deadline=PAST),               "=1 P  D  F  -"),
    "own failed":        (record_of(F, ME),                              "!  =  !  =  !"),
    "own done":          (record_of(D, ME),                              "!  =  =  !  !"),
    "running":           (record_of(P),                                  "!  !  !  !  !"),
    "lapsed":            (record_of(P, deadline=PAST),                   "2  !  !  !  !"),
    "lapsed, no resume": (record_of(P, deadline=PAST),                   "!  !  !  !  !"),
    "failed":            (record_of(F, deadline=PAST),                   "2  !  !  !  !"),
    "failed, no resume": (record_of(F, deadline=PAST),                   "2  !  !  !  !"),
    "done":              (record_of(D),                                  "!  !  !  !  !"),
    "foreign running":   (record_of(P, fingerprint=DIFFERENT),           "!  !  !  !  !"),
    "foreign lapsed":    (record_of(P, fingerprint=DIFFERENT, deadline=PAST), "!  !  !  !  !"),
    "foreign failed":    (record_of(F, fingerprint=DIFFERENT, deadline=PAST), "!  !  !  !  !"),
    "foreign done":      (record_of(D, fingerprint=DIFFERENT),           "!  !  !  !  !"),
    "third failure":     (record_of(F, attempt=3),                       "4  !  !  !  !"),
    "last attempt":      (record_of(F, attempt=MAX_ATTEMPT),             f"{MAX_ATTEMPT} ! ! ! !"),
}
# fmt: on
CASES = [
    pytest.param(standing, event, word, id=f"{standing}-{event}")
    for standing, (_, row) in TABLE.items()
    for event, word in zip(EVENTS, row.split(), strict=True)
]


def do(store: Store, event: str, claim: Claim) -> Claimed | Found | bool:
    if event == "claim":
        return store.claim(claim)
    if event == "renew":
        (kept,) = store.renew([claim])
        return kept
    if event == "complete":
        return store.complete(claim, payload_of(claim), TTL)
    return store.fail(claim) if event == "fail" else store.forget(claim)


@pytest.mark.parametrize(("standing", "event", "word"), CASES)
def test_a_request_may_do_what_the_table_says_and_no_more(place: Place, standing: str, event: str, word: str) -> None:
    before = TABLE[standing][0]
    if before is not None:
        place.elsewhere.set(KEY, before, TTL)
    mine = claim_of(resume="no resume" not in standing)

    answer = do(place.store, event, mine)

    after = place.store.get(KEY)
    assert place.elsewhere.get(KEY) == after
    if word == "!":
        assert answer is False or (isinstance(answer, Found) and answer.record == before)
        assert after == before
    elif word.startswith("="):
        assert answer is True or answer == Claimed(int(word[1:]))
        assert after == before
    elif word == "-":
        assert answer is True
        assert after is None
    else:
        attempt, state = (int(word), P) if word.isdigit() else (1, State(word.encode()))
        assert answer == (Claimed(attempt) if event == "claim" else True)
        assert after is not None
        head = read_head(after)
        assert head == Head(state, attempt, ME, SAME, head.deadline)
        assert after[HEAD_SIZE:] == (payload_of(mine) if state is D else b"")


DAMAGED = {
    "nothing": b"",
    "one byte": b"\x01",
    "a cut head": record_of(P)[: HEAD_SIZE - 1],
    "no attempt": record_of(F, attempt=1).replace(b"F\x00\x01", b"F\x00\x00", 1),
    "an unknown state": record_of(F).replace(b"F", b"X", 1),
    "a pending record with a payload": record_of(P, deadline=PAST) + b"more",
    "a failed record with a payload": record_of(F) + b"more",
    "an outcome without a payload": record_of(D)[:HEAD_SIZE],
    "a deadline with a sign": record_of(P)[: HEAD_SIZE - DEADLINE_SIZE] + b"+000000000001",
    "a deadline with a gap": record_of(P)[: HEAD_SIZE - DEADLINE_SIZE] + b" 000000000001",
    "a deadline of words": record_of(P)[: HEAD_SIZE - DEADLINE_SIZE] + b"1_00000000000",
    "a deadline of words in a claim of our own": record_of(P, ME)[: HEAD_SIZE - DEADLINE_SIZE] + b"1_00000000000",
    "a deadline with a NUL in a claim of our own": record_of(P, ME)[: HEAD_SIZE - DEADLINE_SIZE] + b"12\x0000000000ab",
    "no attempt in a claim of our own": record_of(P, ME).replace(b"P\x00\x01", b"P\x00\x00", 1),
    "a claim of our own with a payload": record_of(P, ME) + b"more",
    "version 0": b"\x00" + record_of(F)[1:],
}
NEWER = {
    "the next version": b"\x02" + record_of(F)[1:],
    "the next version under this request's own token": b"\x02" + record_of(P, ME)[1:],
    "text, which reads as a version far ahead": b"a result of somebody else's",
    "a much later version of another size": b"\xff" + record_of(P, deadline=PAST)[1:40],
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("raw", [*DAMAGED.values(), *NEWER.values()], ids=[*DAMAGED, *NEWER])
def test_a_record_that_cannot_be_read_is_never_taken_nor_changed(place: Place, raw: bytes, event: str) -> None:
    place.elsewhere.set(KEY, raw, TTL)

    answer = do(place.store, event, claim_of())

    assert answer is False or (isinstance(answer, Found) and answer.record == raw)
    assert place.store.get(KEY) == raw


@pytest.mark.parametrize("raw", [*DAMAGED.values(), *NEWER.values()], ids=[*DAMAGED, *NEWER])
def test_what_cannot_be_read_is_an_error_and_no_answer(place: Place, raw: bytes) -> None:
    place.elsewhere.set(KEY, raw, TTL)
    found = place.store.claim(claim_of())
    assert isinstance(found, Found)
    with pytest.raises(NewerRecord if raw in NEWER.values() else UnreadableRecord):
        judge(found, claim_of())


class _Evil:
    """Unpickling it leaves a mark in the file system."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.mark), "w"))


def test_a_pickle_under_the_key_is_never_loaded(place: Place, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    raw = pickle.dumps(_Evil(mark))
    place.elsewhere.set(KEY, raw, TTL)

    found = place.store.claim(claim_of())

    assert isinstance(found, Found)
    with pytest.raises((UnreadableRecord, NewerRecord)):
        judge(found, claim_of())
    assert place.store.get(KEY) == raw
    assert not mark.exists()


@pytest.mark.parametrize("event", EVENTS)
def test_a_reply_that_was_lost_can_be_asked_for_again(store: Store, event: str) -> None:
    mine = claim_of()
    if event != "claim":
        store.claim(mine)

    first = do(store, event, mine)
    again = do(store, event, mine)

    assert again == first
    assert first == (Claimed(1) if event == "claim" else True)


def test_a_claim_of_ones_own_counts_as_the_same_attempt(store: Store) -> None:
    store.claim(claim_of(OTHER))
    store.fail(claim_of(OTHER))
    assert [store.claim(claim_of()) for _ in range(3)] == [Claimed(2)] * 3


@pytest.mark.parametrize(("event", "state"), [("renew", P), ("complete", D), ("fail", F)])
def test_a_record_that_the_store_lost_is_put_back(place: Place, event: str, state: State) -> None:
    place.store.claim(claim_of())
    place.elsewhere.delete(KEY)
    place.store.delete(KEY)

    assert do(place.store, event, claim_of(attempt=3)) is True

    after = place.elsewhere.get(KEY)
    assert after is not None
    head = read_head(after)
    assert (head.state, head.attempt, head.owner, head.fingerprint) == (state, 3, ME, SAME)
    assert all(TTL - 5000 < left <= TTL for left in place.left(KEY))


@pytest.mark.parametrize("event", EVENTS[1:])
@pytest.mark.parametrize("ended", [None, "complete", "fail"])
def test_a_worker_that_lost_its_lease_cannot_touch_what_came_after(place: Place, event: str, ended: str | None) -> None:
    stale, fresh = claim_of(ME, lease_ms=1), claim_of(OTHER, attempt=2)
    place.store.claim(stale)
    eventually(lambda: isinstance(place.elsewhere.claim(fresh), Claimed))
    if ended:
        do(place.elsewhere, ended, fresh)
    before = place.elsewhere.get(KEY)

    written = do(place.store, event, stale)

    assert written is False
    assert place.elsewhere.get(KEY) == before


def test_a_live_lease_holds_and_a_dead_worker_blocks_its_key_for_one_lease(place: Place) -> None:
    place.store.claim(claim_of(OTHER, lease_ms=200))
    first = place.elsewhere.claim(claim_of(ME))
    assert isinstance(first, Found)
    assert 0 < read_head(first.record).deadline - first.now_ms <= 200

    refused = [first]

    def taken() -> Claimed | None:
        answer = place.elsewhere.claim(claim_of(ME))
        if isinstance(answer, Found):
            refused.append(answer)
            return None
        return answer

    assert eventually(taken) == Claimed(2)
    assert all(found.now_ms < read_head(found.record).deadline for found in refused)


def test_a_renewed_lease_outlives_the_first(place: Place) -> None:
    mine = claim_of(lease_ms=100)
    place.store.claim(mine)
    found = place.elsewhere.claim(claim_of(OTHER))
    assert isinstance(found, Found)
    first_end = read_head(found.record).deadline

    def later() -> bool:
        assert place.store.renew([mine]) == [True]
        found = place.elsewhere.claim(claim_of(OTHER))
        assert isinstance(found, Found)
        return found.now_ms > first_end + 100

    assert eventually(later)


def test_attempts_count_up_over_failures_and_crashes(place: Place) -> None:
    for attempt in range(1, 6):
        mine = claim_of(bytes([attempt]) * 16, lease_ms=1 if attempt % 2 else LEASE, attempt=attempt)
        assert eventually(lambda mine=mine: _granted(place.elsewhere.claim(mine))) == Claimed(attempt)
        if attempt % 2 == 0:
            assert place.elsewhere.fail(mine)


def _granted(answer: Claimed | Found) -> Claimed | None:
    return answer if isinstance(answer, Claimed) else None


def test_a_crashed_request_is_refused_for_good_where_the_route_does_not_resume(place: Place) -> None:
    place.store.claim(claim_of(OTHER, lease_ms=1))
    careful, bold = claim_of(ME, resume=False), claim_of(THIRD)

    def unknown() -> bool:
        found = place.elsewhere.claim(careful)
        assert isinstance(found, Found)
        return judge(found, careful) == Unknown()

    assert eventually(unknown)
    assert isinstance(place.elsewhere.claim(careful), Found)
    assert eventually(lambda: _granted(place.elsewhere.claim(bold))) == Claimed(2)


@pytest.mark.parametrize(
    ("ended", "same", "other"),
    [(None, Busy(), Mismatch()), ("complete", Replay, Mismatch()), ("fail", None, Mismatch()), ("forget", None, None)],
)
def test_a_duplicate_and_a_stranger_are_told_apart(
    place: Place, ended: str | None, same: object, other: object
) -> None:
    place.store.claim(claim_of(OTHER))
    if ended:
        do(place.store, ended, claim_of(OTHER))
    for claim, expected in [(claim_of(THIRD, fingerprint=DIFFERENT), other), (claim_of(ME), same)]:
        answer = place.elsewhere.claim(claim)
        if expected is None:
            assert isinstance(answer, Claimed)
            place.elsewhere.forget(claim)
            place.store.fail(claim_of(OTHER))
        else:
            assert isinstance(answer, Found)
            verdict = judge(answer, claim)
            assert verdict == expected or (expected is Replay and isinstance(verdict, Replay))


def test_an_outcome_comes_back_byte_for_byte(place: Place) -> None:
    body = bytes(range(256)) * 4096
    place.store.claim(claim_of())
    assert place.store.complete(claim_of(), payload_of(claim_of(), body), TTL)
    for store in (place.store, place.elsewhere):
        found = store.claim(claim_of(OTHER))
        assert isinstance(found, Found)
        verdict = judge(found, claim_of(OTHER))
        assert isinstance(verdict, Replay)
        assert verdict.response.body == body
        assert verdict.response.status == "201 CREATED"


def test_many_leases_are_renewed_in_one_call_each_by_its_own_merit(place: Place) -> None:
    mine, absent, taken, done = (claim_of(key=f"idempotency:{{{name}}}") for name in "abcd")
    for claim in (mine, done):
        place.store.claim(claim)
    place.elsewhere.claim(claim_of(OTHER, taken.key))
    place.store.complete(done, payload_of(done), TTL)

    assert place.store.renew([taken, mine, absent, done]) == [False, True, True, True]
    assert place.store.renew([]) == []


def test_keys_do_not_meet(store: Store) -> None:
    claims = [claim_of(bytes([i]) * 16, f"idempotency:{{{i}}}") for i in range(20)]
    assert [store.claim(claim) for claim in claims] == [Claimed(1)] * 20
    assert store.forget(claims[3])
    assert store.complete(claims[4], payload_of(claims[4]), TTL)
    heads = [read_head(raw) for claim in claims if (raw := store.get(claim.key)) is not None]
    assert [head.owner for head in heads] == [claim.owner for claim in claims if claim is not claims[3]]
    assert [head.state for head in heads].count(D) == 1


@pytest.mark.parametrize("when", ["claimed", "failed", "done"])
def test_a_foreign_deadline_is_not_the_stores_clock(place: Place, when: str) -> None:
    place.store.claim(claim_of(OTHER))
    if when != "claimed":
        do(place.store, "fail" if when == "failed" else "complete", claim_of(OTHER))
    found = place.elsewhere.claim(claim_of(ME, fingerprint=DIFFERENT))
    assert isinstance(found, Found)
    left = read_head(found.record).deadline - found.now_ms
    low, high = {"claimed": (0, LEASE), "failed": (-5000, 0), "done": (TTL - 5000, TTL)}[when]
    assert low < left <= high
    assert PAST < found.now_ms < FUTURE
