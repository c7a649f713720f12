"""The table of transitions: every standing with every event, by real records."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from flask_idempotent.core.machine import (
    TRANSITIONS,
    Busy,
    Change,
    Effect,
    Event,
    Mismatch,
    Replay,
    Standing,
    Unknown,
    judge,
    standing,
    transition,
)
from flask_idempotent.core.record import (
    HEAD_SIZE,
    MAX_ATTEMPT,
    Head,
    NewerRecord,
    State,
    StoredResponse,
    UnreadableRecord,
    pack_payload,
    read_head,
    read_response,
)
from flask_idempotent.core.store import Claim, Found

from .helpers import CREATED, MINE, NOW, OTHER_REQUEST, REQUEST, TERMS, THEIRS, a_claim, a_record, flip

EXPECTED = """
    STANDING    CLAIM    RENEW    COMPLETE  FAIL     FORGET
    ABSENT      PENDING  PENDING  DONE      FAILED   KEPT
    OWN         KEPT     PENDING  DONE      FAILED   DELETED
    OWN_FAILED  REFUSED  KEPT     REFUSED   KEPT     REFUSED
    OWN_DONE    REFUSED  KEPT     KEPT      REFUSED  REFUSED
    RUNNING     REFUSED  REFUSED  REFUSED   REFUSED  REFUSED
    LAPSED      PENDING  REFUSED  REFUSED   REFUSED  REFUSED
    FAILED      PENDING  REFUSED  REFUSED   REFUSED  REFUSED
    DONE        REFUSED  REFUSED  REFUSED   REFUSED  REFUSED
    FOREIGN     REFUSED  REFUSED  REFUSED   REFUSED  REFUSED
    UNREADABLE  REFUSED  REFUSED  REFUSED   REFUSED  REFUSED
"""
_HEADER, *_ROWS = (line.split() for line in EXPECTED.strip().splitlines())
TABLE = {
    (Standing[row[0]], Event[name]): Effect[effect]
    for row in _ROWS
    for name, effect in zip(_HEADER[1:], row[1:], strict=True)
}

# Every way in which a record can put a request into a standing.
RECORDS: list[tuple[str, Standing, bytes | None]] = [
    ("absent", Standing.ABSENT, None),
    ("own, lease alive", Standing.OWN, a_record(State.PENDING, owner=MINE, deadline=NOW + 1)),
    ("own, lease over", Standing.OWN, a_record(State.PENDING, owner=MINE, deadline=NOW - 9999)),
    ("own failure", Standing.OWN_FAILED, a_record(State.FAILED, owner=MINE)),
    ("own outcome", Standing.OWN_DONE, a_record(State.DONE, owner=MINE)),
    ("another's, lease alive", Standing.RUNNING, a_record(State.PENDING, deadline=NOW + 1)),
    ("another's, lease over now", Standing.LAPSED, a_record(State.PENDING, deadline=NOW)),
    ("another's, lease over for long", Standing.LAPSED, a_record(State.PENDING, deadline=0)),
    ("another's failure", Standing.FAILED, a_record(State.FAILED)),
    ("another's outcome", Standing.DONE, a_record(State.DONE)),
    *(
        (f"another request, {state.name}, deadline {deadline}", Standing.FOREIGN, record)
        for state, deadline in product(State, (0, NOW, NOW + 1))
        for record in [a_record(state, fingerprint=OTHER_REQUEST, deadline=deadline)]
    ),
    ("newer", Standing.UNREADABLE, b"\x02" + a_record(State.DONE)[1:]),
    ("newer, own", Standing.UNREADABLE, b"\x02" + a_record(State.PENDING, owner=MINE)[1:]),
    ("damaged, own", Standing.UNREADABLE, a_record(State.DONE, owner=MINE)[:HEAD_SIZE]),
    ("foreign bytes", Standing.UNREADABLE, b"\x01hello"),
    ("an empty value", Standing.UNREADABLE, b""),
]
every_record = pytest.mark.parametrize(
    ("where", "record"), [case[1:] for case in RECORDS], ids=[case[0] for case in RECORDS]
)
every_event = pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
EXPIRES = NOW + 77_000


def apply(event: Event, record: bytes | None, claim: Claim, expires: int = EXPIRES, **options: Any) -> Change:
    """A transition, with a proper payload for COMPLETE."""
    head = Head(State.DONE, claim.attempt, claim.owner, claim.fingerprint, 0)
    payload = pack_payload(head.pack(), CREATED, 1024) if event is Event.COMPLETE else b""
    return transition(event, record, expires, claim, NOW, payload=payload, **options)


def after(change: Change, record: bytes | None) -> bytes | None:
    """What stands under the key once the store has done what the change says."""
    if change.effect is Effect.DELETED:
        return None
    return change.record if change.effect in (Effect.PENDING, Effect.DONE, Effect.FAILED) else record


def test_the_table_covers_every_standing_with_every_event() -> None:
    assert set(TRANSITIONS) == set(product(Standing, Event)) == set(TABLE)


@pytest.mark.parametrize(("where", "event"), TABLE, ids=lambda part: part.name)
def test_the_table_says_what_the_design_says(where: Standing, event: Event) -> None:
    assert TRANSITIONS[where, event] is TABLE[where, event]


def test_every_standing_is_reached_by_a_record_of_these_tests() -> None:
    assert {where for _, where, _ in RECORDS} == set(Standing)


@every_record
def test_a_record_is_seen_from_the_requests_point_of_view(where: Standing, record: bytes | None) -> None:
    assert standing(record, a_claim(), NOW) is where


@every_record
@every_event
def test_a_transition_does_what_the_table_says(where: Standing, record: bytes | None, event: Event) -> None:
    claim = a_claim(attempt=3)
    change = apply(event, record, claim)
    assert change.effect is TABLE[where, event]
    if change.effect in (Effect.PENDING, Effect.DONE, Effect.FAILED):
        head = read_head(change.record)
        assert (head.state.name, head.owner, head.fingerprint) == (change.effect.name, MINE, REQUEST)
        assert change.expires > NOW
    else:
        assert change.record == (record or b"")
        assert change.expires == 0


@every_record
@pytest.mark.parametrize("event", [event for event in Event if event is not Event.CLAIM], ids=lambda event: event.name)
def test_no_write_after_the_claim_touches_what_another_wrote(
    where: Standing, record: bytes | None, event: Event
) -> None:
    """Promise 4: nobody's outcome is overwritten, nobody's claim is freed by another."""
    change = apply(event, record, a_claim())
    if record is not None and not (len(record) >= HEAD_SIZE and record[4:20] == MINE):
        assert change.effect is Effect.REFUSED
        assert after(change, record) == record


@every_record
def test_a_claim_is_granted_only_where_nobody_is_running_and_nothing_is_stored(
    where: Standing, record: bytes | None
) -> None:
    granted = apply(Event.CLAIM, record, a_claim()).effect is Effect.PENDING
    assert granted is (where in (Standing.ABSENT, Standing.LAPSED, Standing.FAILED))


@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
@pytest.mark.parametrize("record", [None, a_record(State.PENDING, owner=MINE)], ids=["absent", "own"])
def test_a_write_that_is_repeated_succeeds_and_changes_nothing_more(event: Event, record: bytes | None) -> None:
    """The reply to the first was lost, and the client's driver sent it again."""
    first = apply(event, record, a_claim())
    standing_now = after(first, record)
    second = apply(event, standing_now, a_claim())
    assert first.effect is not Effect.REFUSED
    assert second.effect is not Effect.REFUSED
    assert after(second, standing_now) == standing_now


@pytest.mark.parametrize("last", [Event.COMPLETE, Event.FAIL, Event.FORGET], ids=lambda event: event.name)
def test_a_late_renewal_of_an_ended_request_leaves_its_record_alone(last: Event) -> None:
    record = after(apply(last, a_record(State.PENDING, owner=MINE), a_claim()), None)
    renewed = apply(Event.RENEW, record, a_claim())
    if last is Event.FORGET:
        assert renewed.effect is Effect.PENDING, "an absent record is put back: the heartbeat must have stopped before"
    else:
        assert after(renewed, record) == record


@every_record
@every_event
def test_a_route_that_refuses_to_guess_differs_in_one_case_only(
    where: Standing, record: bytes | None, event: Event
) -> None:
    resuming = apply(event, record, a_claim())
    refusing = apply(event, record, a_claim(resume=False))
    if (where, event) == (Standing.LAPSED, Event.CLAIM):
        assert refusing == Change(Effect.REFUSED, record or b"")
    else:
        assert refusing == resuming


# Attempts and times


@pytest.mark.parametrize(
    ("before", "attempt"), [(1, 2), (2, 3), (255, 256), (MAX_ATTEMPT - 1, MAX_ATTEMPT), (MAX_ATTEMPT,) * 2]
)
@pytest.mark.parametrize("state", [State.PENDING, State.FAILED])
def test_taking_over_counts_the_attempts(state: State, before: int, attempt: int) -> None:
    change = apply(Event.CLAIM, a_record(state, attempt=before), a_claim())
    assert read_head(change.record).attempt == attempt


def test_the_first_claim_is_attempt_1() -> None:
    assert read_head(apply(Event.CLAIM, None, a_claim()).record).attempt == 1


@pytest.mark.parametrize("event", [Event.RENEW, Event.COMPLETE, Event.FAIL], ids=lambda event: event.name)
@pytest.mark.parametrize("record", [None, a_record(State.PENDING, owner=MINE, attempt=4)], ids=["absent", "own"])
def test_an_owners_writes_keep_its_attempt(event: Event, record: bytes | None) -> None:
    assert read_head(apply(event, record, a_claim(attempt=4)).record).attempt == 4


LEASE_END, RETAINED = NOW + TERMS.lease_ms, NOW + TERMS.ttl_ms
OWN = a_record(State.PENDING, owner=MINE)


@pytest.mark.parametrize(
    ("event", "record", "deadline", "expires"),
    [
        pytest.param(Event.CLAIM, None, LEASE_END, RETAINED, id="a claim is retained for the TTL"),
        pytest.param(Event.CLAIM, a_record(State.FAILED), LEASE_END, RETAINED, id="so is one after a failure"),
        pytest.param(Event.CLAIM, a_record(State.PENDING), LEASE_END, RETAINED, id="and one after a crash"),
        pytest.param(Event.RENEW, OWN, LEASE_END, EXPIRES, id="a renewal moves the lease, not the retention"),
        pytest.param(Event.RENEW, None, LEASE_END, RETAINED, id="a renewal of what was lost begins anew"),
        pytest.param(Event.FAIL, OWN, NOW, EXPIRES, id="a failure is dated, and retained as long as the claim"),
        pytest.param(Event.FAIL, None, NOW, RETAINED, id="a failure of what was lost begins anew"),
        pytest.param(Event.COMPLETE, OWN, RETAINED, RETAINED, id="an outcome is retained for the TTL from now on"),
        pytest.param(Event.COMPLETE, None, RETAINED, RETAINED, id="so is one of what was lost"),
    ],
)
def test_lease_and_retention_run_by_the_stores_clock(
    event: Event, record: bytes | None, deadline: int, expires: int
) -> None:
    change = apply(event, record, a_claim())
    assert (read_head(change.record).deadline, change.expires) == (deadline, expires)


def test_the_outcome_may_have_a_ttl_of_its_own() -> None:
    change = apply(Event.COMPLETE, OWN, a_claim(), ttl_ms=5_000)
    assert (read_head(change.record).deadline, change.expires) == (NOW + 5_000, NOW + 5_000)


@pytest.mark.parametrize("record", [None, a_record(State.FAILED), a_record(State.PENDING)])
def test_a_claim_outlives_a_ttl_that_is_shorter_than_its_lease(record: bytes | None) -> None:
    """Otherwise a second request would find nothing while the first one runs."""
    change = apply(Event.CLAIM, record, a_claim(lease_ms=30_000, ttl_ms=1_000))
    assert change.expires == NOW + 30_000


def test_a_renewal_outlives_a_retention_that_is_about_to_end() -> None:
    assert apply(Event.RENEW, OWN, a_claim(), expires=NOW + 1).expires == LEASE_END


def test_an_outcome_is_stored_byte_for_byte() -> None:
    response = StoredResponse("200 OK", (("X", "\xff"),), bytes(range(256)))
    head = Head(State.DONE, 7, MINE, REQUEST, 0)
    change = transition(
        Event.COMPLETE, OWN, EXPIRES, a_claim(attempt=7), NOW, payload=pack_payload(head.pack(), response, 10**6)
    )
    assert read_response(change.record) == response


# The answer to a request that did not get its key

VERDICTS: list[tuple[bytes, bool, object]] = [
    (a_record(State.DONE), True, Replay(CREATED)),
    (a_record(State.DONE), False, Replay(CREATED)),
    (a_record(State.PENDING, deadline=NOW + 1), True, Busy()),
    (a_record(State.PENDING, deadline=NOW + 1), False, Busy()),
    (a_record(State.PENDING, deadline=NOW), True, Busy()),
    (a_record(State.PENDING, deadline=NOW), False, Unknown()),
    (a_record(State.FAILED), True, Busy()),
    (a_record(State.FAILED), False, Busy()),
    *(
        (a_record(state, fingerprint=OTHER_REQUEST, deadline=deadline), resume, Mismatch())
        for state, deadline, resume in product(State, (NOW, NOW + 1), (True, False))
    ),
]


@pytest.mark.parametrize(("record", "resume", "verdict"), VERDICTS)
def test_the_verdict_follows_from_what_stands_there(record: bytes, resume: bool, verdict: object) -> None:
    assert judge(Found(record, NOW), a_claim(resume=resume)) == verdict


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"", UnreadableRecord),
        (b"\x00", UnreadableRecord),
        (a_record(State.DONE)[:-1], UnreadableRecord),
        (a_record(State.DONE)[:HEAD_SIZE], UnreadableRecord),
        (b"\x02" + a_record(State.PENDING)[1:], NewerRecord),
        (b"\x02", NewerRecord),
        (b"a string from somewhere else", NewerRecord),
    ],
)
def test_a_record_that_cannot_be_read_gives_an_error_and_no_second_run(record: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        judge(Found(record, NOW), a_claim())
    for event in Event:
        assert apply(event, record, a_claim()).effect is Effect.REFUSED


@pytest.mark.parametrize("compress_over", [0, 10**6], ids=["compressed", "plain"])
def test_no_damage_to_a_finished_record_makes_a_view_run_again(compress_over: int) -> None:
    """Promise 8. Cut anywhere, or with any one bit changed: an error, a mismatch, or the original answer."""
    response = CREATED._replace(body=b'{"id": 7, "lines": []}' * 4)
    record = a_record(State.DONE, response=response, compress_over=compress_over)
    damaged = [record[:size] for size in range(len(record))] + [flip(record, bit) for bit in range(8 * len(record))]
    for value in damaged:
        for claim in (a_claim(), a_claim(resume=False)):
            for now in (0, NOW, 10**13):
                change = transition(Event.CLAIM, value, 10**13, claim, now)
                assert change.effect is Effect.REFUSED
                assert change.record == value
            try:
                verdict = judge(Found(value, NOW), claim)
            except (UnreadableRecord, NewerRecord):
                continue
            if isinstance(verdict, Mismatch):
                assert value[20:52] != REQUEST
            else:
                assert verdict == Replay(response)


def test_no_damage_to_a_finished_record_lets_its_owner_overwrite_it() -> None:
    record = a_record(State.DONE, owner=MINE)
    for bit in range(8 * len(record)):
        for event in (Event.RENEW, Event.COMPLETE, Event.FAIL, Event.FORGET):
            assert after(apply(event, flip(record, bit), a_claim()), flip(record, bit)) == flip(record, bit)


@pytest.mark.parametrize("owner", [THEIRS, MINE])
def test_an_answer_of_another_owners_claim_is_never_taken_for_ones_own(owner: bytes) -> None:
    """The token decides, not the fingerprint: the same request under another token is somebody else."""
    assert standing(a_record(State.PENDING, owner=owner, deadline=NOW + 1), a_claim(), NOW) is (
        Standing.OWN if owner == MINE else Standing.RUNNING
    )
