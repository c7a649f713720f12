"""An operator settles requests whose workers died: on every store, and nothing but such requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from flask_idempotent.core.machine import Replay, judge
from flask_idempotent.core.record import (
    Head,
    State,
    StoredResponse,
    UnstorableResponse,
    is_compressed,
    read_head,
)
from flask_idempotent.core.resolution import Answer, NotResolvable, resolve
from flask_idempotent.core.steps import INTENT, RESULT, journal_key, pack_entry
from flask_idempotent.core.store import Claim, Claimed, Found, Store, Terms

from .conftest import memory
from .making import DIFFERENT, KEY, LEASE, ME, OTHER, SAME, THIRD, TTL, Clock, claim_of, eventually, payload_of

TOKEN = b"operators token!"
TERMS = Terms(lease_ms=LEASE, ttl_ms=TTL, resume=False)
ANSWER = Answer(StoredResponse("202 ACCEPTED", (("X-By", "hand"),), b"told"), 60_000, 1024)
SHORT = 60  # milliseconds, the lease of a worker that dies


def refusing(owner: bytes = OTHER, lease_ms: int = LEASE, fingerprint: bytes = SAME) -> Claim:
    return claim_of(owner, lease_ms=lease_ms, resume=False, fingerprint=fingerprint)


def seen(store: Store) -> Found:
    found = store.peek(KEY)
    assert found is not None
    return found


def a_worker_died(store: Store, claim: Claim | None = None) -> Found:
    """What stands there when the lease of a worker is over."""
    assert isinstance(store.claim(claim or refusing(ME, SHORT)), Claimed)
    eventually(lambda: read_head(seen(store).record).deadline <= seen(store).now_ms)
    return seen(store)


def test_as_done_it_replays_the_given_answer_for_the_given_time(store: Store) -> None:
    resolve(store, KEY, a_worker_died(store), TOKEN, TERMS, ANSWER)
    found = store.claim(refusing())
    assert isinstance(found, Found)
    assert judge(found, refusing()) == Replay(ANSWER.response)
    head = read_head(found.record)
    assert (head.state, head.attempt) == (State.DONE, 1), "an operator's word is no attempt"
    assert 50_000 < head.deadline - found.now_ms <= 60_000


def test_as_never_happened_the_key_is_free_for_any_request(store: Store) -> None:
    resolve(store, KEY, a_worker_died(store), TOKEN, TERMS, None)
    assert store.peek(KEY) is None
    assert store.claim(refusing(fingerprint=DIFFERENT)) == Claimed(1)


@pytest.mark.parametrize("answer", [ANSWER, None], ids=["done", "never-happened"])
def test_a_frozen_worker_that_thaws_changes_nothing_any_more(store: Store, answer: Answer | None) -> None:
    frozen = refusing(ME, SHORT)
    resolve(store, KEY, a_worker_died(store, frozen), TOKEN, TERMS, answer)
    if answer is None:  # the next one has the key by now
        assert store.claim(refusing()) == Claimed(1)
    before = seen(store).record
    assert store.renew([frozen]) == [False]
    assert store.complete(frozen, payload_of(frozen), TTL) is False
    assert store.fail(frozen) is False
    assert store.forget(frozen) is False
    assert seen(store).record == before


def test_the_journal_of_what_never_happened_is_dropped(store: Store) -> None:
    found = a_worker_died(store)
    store.set(journal_key(KEY), b"journal", TTL)
    resolve(store, KEY, found, TOKEN, TERMS, None)
    assert store.get(journal_key(KEY)) is None


@pytest.mark.parametrize("answer", [ANSWER, None], ids=["done", "never-happened"])
def test_a_request_that_failed_in_a_step_is_settled_with_its_other_steps_kept(
    store: Store, answer: Answer | None
) -> None:
    """A step at_most_once that may have been done blocks the key: it is not tried again, whoever asks."""
    mine = refusing(ME)
    store.claim(mine)
    charge, mail = pack_entry(b"c" * 16, INTENT, b"") + pack_entry(b"c" * 16, RESULT, b"7"), b"m" * 16
    store.begin_step(mine, b"c" * 16, pack_entry(b"c" * 16, INTENT, b""))
    store.end_step(mine, pack_entry(b"c" * 16, RESULT, b"7"))
    store.begin_step(mine, mail, pack_entry(mail, INTENT, b""))
    store.fail(mine)
    resolve(store, KEY, seen(store), TOKEN, TERMS, answer)
    if answer is None:
        assert store.get(journal_key(KEY)) == charge
        assert isinstance(store.claim(refusing(fingerprint=DIFFERENT)), Found)
        assert store.claim(refusing()) == Claimed(2)
    else:
        found = store.claim(refusing())
        assert isinstance(found, Found)
        assert judge(found, refusing()) == Replay(ANSWER.response)


def running(store: Store) -> None:
    store.claim(refusing(ME))


def failed(store: Store) -> None:
    store.claim(refusing(ME))
    store.fail(refusing(ME))


def done(store: Store) -> None:
    store.claim(refusing(ME))
    store.complete(refusing(ME), payload_of(refusing(ME)), TTL)


def another_value(store: Store) -> None:
    store.set(KEY, b"\x01J{}", TTL)


def of_a_later_version(store: Store) -> None:
    store.set(KEY, b"\x02" + bytes(100), TTL)


REFUSED = [
    (running, "its lease lasts for another (30|29)"),
    (failed, "runs again when the client repeats it"),
    (done, "its answer is replayed"),
    (another_value, "no record of a request"),
    (of_a_later_version, "the version of this library that the workers have"),
]


@pytest.mark.parametrize(("come_about", "why"), REFUSED, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize("answer", [ANSWER, None], ids=["done", "never-happened"])
def test_anything_else_is_refused_with_the_reason_and_stays(
    store: Store, come_about: Callable[[Store], None], why: str, answer: Answer | None
) -> None:
    come_about(store)
    before = seen(store).record
    with pytest.raises(NotResolvable, match=why):
        resolve(store, KEY, seen(store), TOKEN, TERMS, answer)
    assert seen(store).record == before


CHANGES = {
    "renewed": (lambda store, claim: store.renew([claim]), "its lease lasts"),
    "completed": (lambda store, claim: store.complete(claim, payload_of(claim), TTL), "its answer is replayed"),
    "forgotten": (lambda store, claim: store.forget(claim), "has changed or expired"),
    "taken over": (lambda store, _claim: store.claim(claim_of(THIRD)), "its lease lasts"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("answer", [ANSWER, None], ids=["done", "never-happened"])
def test_a_worker_that_came_back_before_the_operator_spoke_wins(
    store: Store, change: str, answer: Answer | None
) -> None:
    frozen = refusing(ME, SHORT)
    found = a_worker_died(store, frozen)
    act, why = CHANGES[change]
    assert act(store, frozen._replace(terms=TERMS))
    before = store.peek(KEY)
    with pytest.raises(NotResolvable, match=why):
        resolve(store, KEY, found, TOKEN, TERMS, answer)
    after = store.peek(KEY)
    assert (after and after.record) == (before and before.record)


def test_an_answer_that_http_cannot_send_changes_nothing(store: Store) -> None:
    found = a_worker_died(store)
    impossible = replace(ANSWER, response=StoredResponse("200 OK", (("X-Name", "☃"),), b""))
    with pytest.raises(UnstorableResponse):
        resolve(store, KEY, found, TOKEN, TERMS, impossible)
    assert seen(store).record == found.record


@pytest.mark.parametrize(("compress_over", "compressed"), [(10, True), (10_000, False)])
def test_a_long_answer_is_compressed_as_a_views_would_be(compress_over: int, compressed: bool) -> None:
    clock = Clock()
    store = memory(clock=clock)
    store.claim(refusing(ME))
    clock.advance(LEASE)
    long = Answer(StoredResponse("200 OK", (), b"x" * 5000), TTL, compress_over)
    resolve(store, KEY, seen(store), TOKEN, TERMS, long)
    assert is_compressed(seen(store).record) is compressed
    assert judge(seen(store), refusing()) == Replay(long.response)


def test_the_attempts_of_the_dead_are_kept_up_to_the_last_number() -> None:
    clock = Clock()
    store = memory(clock=clock)
    head = Head(State.PENDING, 0xFFFF, ME, SAME, clock.now)
    store.set(KEY, head.pack(), TTL)
    resolve(store, KEY, seen(store), TOKEN, TERMS, ANSWER)
    assert read_head(seen(store).record).attempt == 0xFFFF
