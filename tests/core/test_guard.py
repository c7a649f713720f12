"""The guard over the memory store: who runs, who gets which answer, and what a store that fails may not do."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from flask_idempotent.core.guard import Guard, Occurrence, Outcome, Unprotected
from flask_idempotent.core.machine import Busy, Mismatch, Replay, Unknown
from flask_idempotent.core.record import HEAD_SIZE, NewerRecord, State, StoredResponse, UnreadableRecord, read_head
from flask_idempotent.core.store import Claim, Found, Gone, OnOutage, StoreError, StoreFull, Terms, TimedOut
from flask_idempotent.stores.memory import MemoryStore

from .helpers import CREATED, OTHER_REQUEST, REQUEST, TERMS, Clock, a_record, flip, until
from .worker import Worker, memory

ENDS = ("finish", "fail", "forget")
LATER = StoredResponse("200 OK", (), b"later")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> MemoryStore:
    return memory(clock)


@pytest.fixture
def worker(store: MemoryStore) -> Worker:
    return Worker(store)


@pytest.fixture
def other(store: MemoryStore) -> Worker:
    return Worker(store)


# One request after the other


def test_the_first_request_runs_and_its_duplicates_get_its_answer(worker: Worker, other: Worker) -> None:
    run = worker.run()
    assert other.begin() == worker.begin() == Busy()
    assert worker.finish(run)
    assert other.begin() == worker.begin() == Replay(CREATED)
    assert worker.outcomes == [
        Outcome.CLAIMED,
        Outcome.BUSY,
        Outcome.COMPLETED,
        Outcome.REPLAYED,
    ]
    assert other.outcomes == [Outcome.BUSY, Outcome.REPLAYED]


def test_every_occurrence_carries_the_storage_key(worker: Worker) -> None:
    worker.finish(worker.run("a"))
    worker.begin("a", OTHER_REQUEST)
    assert worker.seen == [
        Occurrence(Outcome.CLAIMED, "a"),
        Occurrence(Outcome.COMPLETED, "a"),
        Occurrence(Outcome.MISMATCHED, "a"),
    ]


def test_two_keys_know_nothing_of_each_other(worker: Worker) -> None:
    one, two = worker.run("one"), worker.run("two")
    assert worker.finish(one)
    assert worker.begin("two") == Busy()
    assert worker.finish(two, LATER)
    assert (worker.begin("one"), worker.begin("two")) == (Replay(CREATED), Replay(LATER))


@pytest.mark.parametrize("how", [None, "finish", "fail"])
@pytest.mark.parametrize("resume", [True, False])
def test_another_request_under_the_key_is_told_so_in_every_state(
    how: str | None, resume: bool, worker: Worker, clock: Clock
) -> None:
    terms = TERMS._replace(resume=resume)
    run = worker.run()
    if how:
        worker.end(how, run)
    assert worker.begin(fingerprint=OTHER_REQUEST, terms=terms) == Mismatch()
    clock.advance(TERMS.lease_ms)
    assert worker.begin(fingerprint=OTHER_REQUEST, terms=terms) == Mismatch()
    assert worker.outcomes[-1] is Outcome.MISMATCHED


def test_a_mismatch_leaves_the_original_answer_intact(worker: Worker, store: MemoryStore) -> None:
    worker.finish(worker.run())
    before = store.get("k")
    assert worker.begin(fingerprint=OTHER_REQUEST) == Mismatch()
    assert store.get("k") == before
    assert worker.begin() == Replay(CREATED)


def test_a_failure_lets_the_same_request_run_again_under_a_higher_attempt(worker: Worker, other: Worker) -> None:
    assert worker.guard.fail(worker.run())
    again = other.run()
    assert again.attempt == 2
    assert other.guard.fail(again)
    assert worker.run(terms=TERMS._replace(resume=False)).attempt == 3
    assert worker.outcomes == [Outcome.CLAIMED, Outcome.FAILED, Outcome.CLAIMED]


def test_a_refusal_frees_the_key_for_any_request(worker: Worker, other: Worker, store: MemoryStore) -> None:
    assert worker.guard.forget(worker.run())
    assert store.get("k") is None
    assert other.run(fingerprint=OTHER_REQUEST).attempt == 1
    assert worker.outcomes == [Outcome.CLAIMED, Outcome.RELEASED]


def test_an_outcome_is_replayed_until_its_ttl_ends_and_not_longer(worker: Worker, clock: Clock) -> None:
    worker.finish(worker.run())
    clock.advance(TERMS.ttl_ms - 1)
    assert worker.begin() == Replay(CREATED)
    clock.advance(1)
    assert worker.run(fingerprint=OTHER_REQUEST).attempt == 1


def test_an_outcomes_own_ttl_counts_from_its_end(worker: Worker, clock: Clock) -> None:
    run = worker.run()
    clock.advance(20_000)
    worker.finish(run, ttl_ms=5_000)
    clock.advance(4_999)
    assert worker.begin() == Replay(CREATED)
    clock.advance(1)
    assert isinstance(worker.begin(), Claim)


@pytest.mark.parametrize(
    "response",
    [
        StoredResponse("204 NO CONTENT", (), b""),
        StoredResponse("200 OK", (("X", "1"), ("X", "2")), b"null"),
        StoredResponse("200 OK", (("X", "\xfc\xff"),), bytes(range(256)) * 20),
        StoredResponse("200 OK", (), None),
        StoredResponse("599 WHAT", (("A", ""),), b"x" * 100_000),
    ],
    ids=["empty", "falsy", "binary", "omitted", "long"],
)
def test_a_replay_is_the_answer_byte_for_byte(response: StoredResponse, worker: Worker) -> None:
    worker.finish(worker.run(), response)
    assert worker.begin() == Replay(response)


# Workers that die, freeze and thaw


def test_a_dead_worker_blocks_its_key_for_one_lease(worker: Worker, other: Worker, clock: Clock) -> None:
    worker.run()
    clock.advance(TERMS.lease_ms - 1)
    assert other.begin() == Busy()
    clock.advance(1)
    assert other.run().attempt == 2


def test_a_route_that_does_not_guess_says_that_the_outcome_is_unknown(
    worker: Worker, other: Worker, clock: Clock, store: MemoryStore
) -> None:
    terms = TERMS._replace(resume=False)
    worker.run(terms=terms)
    assert other.begin(terms=terms) == Busy()
    clock.advance(TERMS.lease_ms)
    before = store.get("k")
    assert other.begin(terms=terms) == Unknown()
    assert other.outcomes == [Outcome.BUSY, Outcome.UNKNOWN]
    assert store.get("k") == before
    assert worker.outcomes == [Outcome.CLAIMED]


def test_a_slow_worker_keeps_its_key_as_long_as_its_heart_beats(worker: Worker, other: Worker, clock: Clock) -> None:
    run = worker.run()
    for _ in range(100):
        clock.advance(TERMS.lease_ms - 1)
        worker.heartbeat.beat()
        assert other.begin() == Busy()
    assert worker.finish(run)
    assert other.begin() == Replay(CREATED)


@pytest.mark.parametrize("late", ENDS)
@pytest.mark.parametrize("meanwhile", [None, *ENDS])
def test_a_worker_that_thaws_changes_nothing_that_another_has_written(
    late: str, meanwhile: str | None, worker: Worker, other: Worker, clock: Clock, store: MemoryStore
) -> None:
    stale = worker.run()
    clock.advance(TERMS.lease_ms)
    run = other.run()
    if meanwhile:
        assert other.end(meanwhile, run)
    before = store.get("k")
    ended = worker.end(late, stale)
    if before is None:  # nobody's record is in the way: a finished view is never turned into a conflict
        assert ended
        return
    assert not ended
    assert worker.outcomes == [Outcome.CLAIMED, Outcome.LOST_LEASE]
    assert store.get("k") == before


def test_a_worker_that_thaws_learns_from_its_heartbeat_that_the_key_is_lost(
    worker: Worker, other: Worker, clock: Clock
) -> None:
    worker.run()
    clock.advance(TERMS.lease_ms)
    run = other.run()
    worker.heartbeat.beat()
    assert worker.outcomes == [Outcome.CLAIMED, Outcome.LOST_LEASE]
    assert not worker.heartbeat.claims
    assert other.finish(run)


@pytest.mark.parametrize("how", ENDS)
def test_a_view_that_outlives_even_its_record_is_still_recorded(how: str, worker: Worker, clock: Clock) -> None:
    """Promise 5: a store that lost the record does not turn a finished view into a conflict."""
    run = worker.run()
    clock.advance(TERMS.ttl_ms + TERMS.lease_ms)
    assert worker.end(how, run)
    begun = worker.begin()
    assert begun == Replay(CREATED) if how == "finish" else isinstance(begun, Claim)


# The heartbeat


def test_only_a_request_that_runs_has_its_lease_renewed_and_only_while_it_runs(worker: Worker, other: Worker) -> None:
    worker.guard.fail(worker.run())
    run = worker.run()
    assert other.begin() == Busy()
    assert other.begin(fingerprint=OTHER_REQUEST) == Mismatch()
    assert worker.heartbeat.claims == {run.owner: run}
    assert run.attempt == 2, "a renewal that puts a lost record back must not forget the attempts"
    assert other.heartbeat.claims == {}


@pytest.mark.parametrize("trouble", ["heartbeat", "observer"])
def test_a_view_that_cannot_start_leaves_its_key_free(
    trouble: str, worker: Worker, other: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of threads, say: nothing has happened yet, and nobody must wait a lease for it."""

    def fail(claim: Claim) -> None:
        raise RuntimeError("can't start new thread")

    def fail_at_first(outcome: Outcome, *_: Any) -> None:
        if outcome is Outcome.CLAIMED:
            raise RuntimeError("an observer's mistake")

    if trouble == "heartbeat":
        monkeypatch.setattr(worker.heartbeat, "add", fail)
    else:
        monkeypatch.setattr(worker.guard, "_observe", fail_at_first)
    with pytest.raises(RuntimeError):
        worker.begin()
    assert not worker.heartbeat.claims
    assert other.run(fingerprint=OTHER_REQUEST).attempt == 1


class Recording:
    """Passes on to a store what is asked of it, and notes the order."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            return getattr(self._store, name)(*args)

        return call


@pytest.mark.parametrize("how", ENDS)
def test_the_heartbeat_is_stopped_before_the_end_is_written(
    how: str, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal after a forget would put the record back, and block the key."""
    recording = Recording(store)
    worker = Worker(recording)  # type: ignore[arg-type]
    run = worker.run()
    discard = worker.heartbeat.discard

    def noted(claim: Claim) -> None:
        recording.calls.append("discard")
        discard(claim)

    monkeypatch.setattr(worker.heartbeat, "discard", noted)
    worker.end(how, run)
    assert recording.calls == ["claim", "discard", {"finish": "complete"}.get(how, how)]


def test_a_first_run_asks_the_store_twice_and_a_replay_once(store: MemoryStore) -> None:
    recording = Recording(store)
    worker = Worker(recording)  # type: ignore[arg-type]
    worker.finish(worker.run())
    assert recording.calls == ["claim", "complete"]
    worker.begin(terms=TERMS._replace(wait_ms=1000))
    assert recording.calls[2:] == ["claim"]


def test_a_duplicate_that_may_not_wait_asks_the_store_once(worker: Worker, store: MemoryStore) -> None:
    worker.run()
    recording = Recording(store)
    assert Worker(recording).begin() == Busy()  # type: ignore[arg-type]
    assert recording.calls == ["claim"]


def test_the_real_heartbeat_keeps_a_real_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_idempotent.core.lease.IDLE_SECONDS", 0.01)
    clock = Clock()
    store = memory(clock)
    terms = TERMS._replace(lease_ms=30)
    guard = Guard(store, lambda *_: None)
    run = guard.begin("k", REQUEST, terms)
    assert isinstance(run, Claim)
    for _ in range(5):
        clock.advance(29)
        until(lambda: read_head(store.get("k") or b"").deadline == clock.now + 30)
    assert guard.finish(run, CREATED, 1000, 1024)
    assert guard.begin("k", REQUEST, terms) == Replay(CREATED)


def test_a_guard_that_is_closed_renews_nothing_gives_back_the_store_and_can_begin_again(store: MemoryStore) -> None:
    recording = Recording(store)
    worker = Worker(recording)  # type: ignore[arg-type]
    worker.finish(worker.run("done"))
    worker.run("running")
    worker.guard.close()
    assert not worker.heartbeat.claims
    assert recording.calls[-1] == "close"
    assert worker.begin("done") == Replay(CREATED)
    assert worker.begin("running") == Busy()
    assert worker.finish(worker.run("new"))


# Tokens


def test_every_request_has_an_unpredictable_token_of_its_own(store: MemoryStore) -> None:
    guard = Guard(store, lambda *_: None)
    runs = [guard.begin(f"k{n}", REQUEST, TERMS) for n in range(200)]
    owners = {run.owner for run in runs if isinstance(run, Claim)}
    for run in runs:
        assert isinstance(run, Claim)
        guard.forget(run)
    assert len(owners) == 200
    assert {len(owner) for owner in owners} == {16}
    assert len({owner[:2] for owner in owners}) > 150


def test_a_test_may_choose_the_tokens(store: MemoryStore) -> None:
    assert Worker(store, token=lambda: b"0123456789abcdef").run().owner == b"0123456789abcdef"


# Waiting

WAITING = TERMS._replace(wait_ms=10_000)


def waits(store: MemoryStore) -> bool:
    return bool(store._waiters)


def wait_beside(worker: Worker, store: MemoryStore, terms: Terms, act: Callable[[], object]) -> Any:
    """What a waiting duplicate is told when ``act`` happens meanwhile."""
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(worker.begin, terms=terms)
        until(lambda: waits(store))
        act()
        return told.result(timeout=10)


def test_a_duplicate_that_waits_gets_the_answer(worker: Worker, other: Worker, store: MemoryStore) -> None:
    run = worker.run()
    assert wait_beside(other, store, WAITING, lambda: worker.finish(run)) == Replay(CREATED)
    assert other.outcomes == [Outcome.REPLAYED]


@pytest.mark.parametrize("how", ["fail", "forget"])
def test_a_duplicate_that_waits_for_nothing_comes_back_and_does_not_run(
    how: str, worker: Worker, other: Worker, store: MemoryStore
) -> None:
    run = worker.run()
    assert wait_beside(other, store, WAITING, lambda: worker.end(how, run)) == Busy()
    assert other.outcomes == [Outcome.BUSY]
    assert not other.heartbeat.claims


def test_a_duplicate_is_not_fooled_by_another_request_that_took_the_freed_key(
    worker: Worker, other: Worker, store: MemoryStore
) -> None:
    run = worker.run()

    def replaced() -> None:
        with store._backend.lock:  # both changes before the waiter can look
            worker.guard.forget(run)
            worker.finish(worker.run(fingerprint=OTHER_REQUEST), LATER)

    assert wait_beside(other, store, WAITING, replaced) == Mismatch()


def test_a_duplicate_that_gives_up_frees_nothing(worker: Worker, other: Worker, store: MemoryStore) -> None:
    run = worker.run()
    before = store.get("k")
    assert other.begin(terms=TERMS._replace(wait_ms=20)) == Busy()
    assert store.get("k") == before
    assert not waits(store)
    assert worker.finish(run)


def test_a_duplicate_that_waits_for_a_damaged_record_gets_an_error(
    worker: Worker, other: Worker, store: MemoryStore
) -> None:
    worker.run()
    with pytest.raises(UnreadableRecord):
        wait_beside(other, store, WAITING, lambda: store.set("k", a_record(State.DONE)[:-1], 1000))


class NoWaiting(Recording):
    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        raise StoreError("gone", outage=True)


def test_a_duplicate_whose_wait_is_cut_off_is_told_that_the_first_is_running(
    worker: Worker, store: MemoryStore
) -> None:
    worker.run()
    assert Worker(NoWaiting(store)).begin(terms=WAITING) == Busy()  # type: ignore[arg-type]


@pytest.mark.parametrize("state", ["mismatch", "unknown", "done"])
def test_nobody_waits_for_what_is_already_known(state: str, worker: Worker, store: MemoryStore, clock: Clock) -> None:
    run = worker.run()
    if state == "done":
        worker.finish(run)
    if state == "unknown":
        clock.advance(TERMS.lease_ms)
    recording = Recording(store)
    Worker(recording).begin(  # type: ignore[arg-type]
        fingerprint=OTHER_REQUEST if state == "mismatch" else REQUEST, terms=WAITING._replace(resume=False)
    )
    assert recording.calls == ["claim"]


@pytest.fixture
def _impatient_threads() -> Iterator[None]:
    """Let Python change threads as often as it can, so that what is not atomic shows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("_impatient_threads")
def test_of_many_requests_at_once_exactly_one_runs(store: MemoryStore) -> None:
    threads, rounds = 8, 100
    abreast = threading.Barrier(threads)

    def requests() -> list[Any]:
        worker, begun = Worker(store), []
        for n in range(rounds):
            abreast.wait(timeout=10)
            begun.append(worker.begin(f"k{n}"))
        return begun

    with ThreadPoolExecutor(threads) as pool:
        told = [future.result(timeout=30) for future in [pool.submit(requests) for _ in range(threads)]]
    for answers in zip(*told, strict=True):
        assert sum(isinstance(answer, Claim) for answer in answers) == 1
        assert answers.count(Busy()) == threads - 1


def test_a_hundred_duplicates_that_wait_get_the_answer_of_the_one_that_runs(store: MemoryStore) -> None:
    abreast = threading.Barrier(100)

    def request() -> Any:
        worker = Worker(store)
        abreast.wait(timeout=10)
        begun = worker.begin(terms=WAITING)
        if isinstance(begun, Claim):
            until(lambda: waits(store))
            worker.finish(begun)
        return begun

    with ThreadPoolExecutor(100) as pool:
        answers = [future.result(timeout=30) for future in [pool.submit(request) for _ in range(100)]]
    assert answers.count(Replay(CREATED)) == 99
    assert sum(isinstance(answer, Claim) for answer in answers) == 1


# A store that fails


class Failing(Recording):
    """Fails whatever is named."""

    def __init__(self, store: MemoryStore, error: Exception, *names: str) -> None:
        super().__init__(store)
        self.error = error
        self.names = names

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            return super().__getattr__(name)

        def call(*args: Any) -> Any:
            raise self.error

        return call


AWAY, REFUSING, FULL = StoreError("away", outage=True), StoreError("wrong password"), StoreFull("full")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("error", [AWAY, REFUSING, FULL], ids=str)
def test_a_finished_view_never_turns_into_an_error_because_the_store_failed(
    how: str, error: StoreError, store: MemoryStore
) -> None:
    worker = Worker(Failing(store, error, "complete", "fail", "forget"))  # type: ignore[arg-type]
    run = worker.run()
    assert worker.end(how, run) is False
    assert worker.seen[1:] == [Occurrence(Outcome.UNRECORDED, "k", error)]
    assert not worker.heartbeat.claims


@pytest.mark.parametrize(
    "response",
    [
        StoredResponse("200 OK", (("X-Name", "\u0141\xf3d\u017a"),), b"{}"),
        StoredResponse("200 \u2713", (), b"{}"),
        StoredResponse("200 " + "x" * 70_000, (), b"{}"),
        StoredResponse("200 OK", (("x" * 70_000, ""),), b"{}"),
        StoredResponse("200 OK", (("X", "y"),) * 70_000, b"{}"),
    ],
    ids=["header", "status", "long status", "long name", "many headers"],
)
def test_a_finished_view_never_turns_into_an_error_because_its_answer_cannot_be_packed(
    response: StoredResponse, worker: Worker
) -> None:
    """Promise 5. And the lease must not be renewed for an hour for a view that is over."""
    run = worker.run()
    assert worker.finish(run, response) is False
    assert Outcome.UNRECORDED in worker.outcomes
    assert not worker.heartbeat.claims
    assert worker.begin(fingerprint=OTHER_REQUEST) == Mismatch()
    assert worker.run().attempt == 2


@pytest.mark.parametrize("policy", [OnOutage.LOCAL, OnOutage.REJECT])
@pytest.mark.parametrize("error", [AWAY, REFUSING, FULL], ids=str)
def test_a_request_that_cannot_claim_its_key_does_not_run(
    policy: OnOutage, error: StoreError, store: MemoryStore
) -> None:
    worker = Worker(Failing(store, error, "claim"))  # type: ignore[arg-type]
    with pytest.raises(StoreError) as caught:
        worker.begin(terms=TERMS._replace(on_outage=policy))
    assert caught.value is error
    assert (worker.seen, worker.heartbeat.claims) == ([], {})


def test_a_route_that_prefers_to_execute_runs_unprotected_during_an_outage(store: MemoryStore) -> None:
    worker = Worker(Failing(store, AWAY, "claim"))  # type: ignore[arg-type]
    assert worker.begin(terms=TERMS._replace(on_outage=OnOutage.EXECUTE)) == Unprotected()
    assert worker.outcomes == [Outcome.UNPROTECTED]
    assert not worker.heartbeat.claims


@pytest.mark.parametrize("error", [REFUSING, FULL], ids=str)
def test_what_is_no_outage_is_no_reason_to_run_unprotected(error: StoreError, store: MemoryStore) -> None:
    """``ON_OUTAGE`` is about a Redis that is away; a full store or a wrong password is a mistake to be seen."""
    worker = Worker(Failing(store, error, "claim"))  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        worker.begin(terms=TERMS._replace(on_outage=OnOutage.EXECUTE))


def test_an_error_that_is_not_the_stores_is_not_hidden(store: MemoryStore) -> None:
    worker = Worker(Failing(store, TypeError("a mistake of ours"), "claim", "complete"))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        worker.begin(terms=TERMS._replace(on_outage=OnOutage.EXECUTE))


def test_a_full_store_takes_no_new_key_and_keeps_the_old_ones(clock: Clock) -> None:
    worker = Worker(memory(clock, threshold=2))
    done, running = worker.run("done"), worker.run("running")
    worker.finish(done)
    with pytest.raises(StoreFull):
        worker.begin("new")
    assert worker.begin("done") == Replay(CREATED)
    assert worker.begin("running") == Busy()
    assert worker.finish(running)
    clock.advance(TERMS.ttl_ms)
    assert isinstance(worker.begin("new"), Claim)


def test_one_lease_that_cannot_be_renewed_does_not_cost_the_others_theirs(clock: Clock) -> None:
    """An operator deleted a record, its place was taken, and the renewal finds no room to put it back."""
    store = memory(clock, threshold=2)
    worker = Worker(store)
    worker.run("deleted")
    worker.run("running")
    store.delete("deleted")
    worker.run("new")
    clock.advance(TERMS.lease_ms - 1)
    with suppress(StoreError):
        worker.heartbeat.beat()
    clock.advance(1)
    assert worker.begin("running") == Busy()


# Records that cannot be read


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (b"", UnreadableRecord),
        (a_record(State.DONE)[:-3], UnreadableRecord),
        (a_record(State.DONE)[:HEAD_SIZE], UnreadableRecord),
        (b"\x00" * 100, UnreadableRecord),
        (b"\x02" + a_record(State.PENDING)[1:], NewerRecord),
    ],
)
@pytest.mark.parametrize(
    "terms", [TERMS, WAITING, TERMS._replace(on_outage=OnOutage.EXECUTE)], ids=["", "wait", "execute"]
)
def test_a_record_that_cannot_be_read_is_an_error_and_never_a_second_run(
    record: bytes, error: type[Exception], terms: Terms, worker: Worker, store: MemoryStore
) -> None:
    store.set("k", record, 1000)
    with pytest.raises(error):
        worker.begin(terms=terms)
    assert store.get("k") == record
    assert (worker.seen, worker.heartbeat.claims) == ([], {})


def test_a_finished_record_with_a_flipped_bit_is_never_run_again(
    worker: Worker, store: MemoryStore, clock: Clock
) -> None:
    worker.finish(worker.run())
    record = store.get("k") or b""
    clock.advance(TERMS.lease_ms + 1)
    for bit in range(8 * len(record)):
        damaged = flip(record, bit)
        store.set("k", damaged, 1000)
        try:
            answer = worker.begin()
        except (UnreadableRecord, NewerRecord):
            continue
        assert answer in (Replay(CREATED), Mismatch())
        assert store.get("k") == damaged


# Any history at all

KEYS = ("a", "b")
REQUESTS = (REQUEST, OTHER_REQUEST)
WORKERS = 3
TTLS = st.sampled_from((5, 40, 200))


@dataclass
class Entry:
    """A record as the model sees it."""

    state: str
    run: Started
    fingerprint: bytes
    attempt: int
    expires: int
    lease_end: int = 0
    response: StoredResponse | None = None


@dataclass(eq=False)
class Started:
    """A run as its worker sees it: alive until it ends, its lease as good as its last renewal."""

    claim: Claim
    worker: Worker
    lease_end: int
    alive: bool = True


@dataclass
class Kept:
    """An outcome that was stored, and until when the client may count on it."""

    fingerprint: bytes
    response: StoredResponse
    until: int


@dataclass
class Model:
    """What should stand in the store."""

    entries: dict[str, Entry] = field(default_factory=dict)

    def find(self, key: str, now: int) -> Entry | None:
        entry = self.entries.get(key)
        return entry if entry and entry.expires > now else None


class GuardHistory(RuleBasedStateMachine):
    """Workers begin, beat, finish, fail, forget, freeze and thaw in any order, while time passes."""

    runs = Bundle("runs")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = memory(self.clock)
        self.workers = [Worker(self.store) for _ in range(WORKERS)]
        self.model = Model()
        self.started: list[Started] = []
        self.kept: dict[str, Kept] = {}

    @rule(
        target=runs,
        key=st.sampled_from(KEYS),
        fingerprint=st.sampled_from((REQUEST, REQUEST, OTHER_REQUEST)),
        worker=st.integers(0, WORKERS - 1),
        resume=st.booleans(),
        lease_ms=st.sampled_from((10, 30)),
        ttl_ms=TTLS,
    )
    def begin(self, key: str, fingerprint: bytes, worker: int, resume: bool, lease_ms: int, ttl_ms: int) -> Any:
        now = self.clock.now
        terms = Terms(lease_ms=lease_ms, ttl_ms=ttl_ms, resume=resume)
        told = self.workers[worker].begin(key, fingerprint, terms)
        entry, promised = self.model.find(key, now), self.kept.get(key)
        if promised and now < promised.until:
            expected = Replay(promised.response) if promised.fingerprint == fingerprint else Mismatch()
            assert told == expected, "a finished key answers with its own outcome until its TTL ends"
        if isinstance(told, Replay):
            stored = dict(told.response.headers)
            assert (stored["key"], stored["request"]) == (key, str(REQUESTS.index(fingerprint)))
        if not isinstance(told, Claim):
            assert entry is not None
            assert told == self._verdict(entry, fingerprint, resume)
            return multiple()
        assert entry is None or self._verdict(entry, fingerprint, resume) is None
        assert told.attempt == (entry.attempt + 1 if entry else 1)
        started = Started(told, self.workers[worker], now + lease_ms)
        self.started.append(started)
        self.model.entries[key] = self._pending(started, fingerprint, max(lease_ms, ttl_ms))
        return started

    @rule(target=runs, started=runs, worker=st.integers(0, WORKERS - 1), beyond=st.sampled_from((-1, 0, 1, 3)))
    def freeze_and_retry(self, started: Started, worker: int, beyond: int) -> Any:
        """A worker is silent for about as long as its lease, and the client tries again elsewhere."""
        self.clock.advance(max(started.lease_end + beyond - self.clock.now, 0))
        return self.begin(started.claim.key, started.claim.fingerprint, worker, True, 10, 200)

    def _verdict(self, entry: Entry, fingerprint: bytes, resume: bool) -> object:
        """What a second request is told; None when it may run."""
        if entry.fingerprint != fingerprint:
            return Mismatch()
        if entry.state == "D":
            assert entry.response is not None
            return Replay(entry.response)
        if entry.state == "P" and entry.lease_end > self.clock.now:
            return Busy()
        return Unknown() if entry.state == "P" and not resume else None

    def _pending(self, started: Started, fingerprint: bytes, kept_ms: int) -> Entry:
        now, claim = self.clock.now, started.claim
        return Entry("P", started, fingerprint, claim.attempt, now + kept_ms, now + claim.terms.lease_ms)

    @rule(worker=st.integers(0, WORKERS - 1))
    def beat(self, worker: int) -> None:
        now = self.clock.now
        beating = [started for started in self.started if started.claim.owner in self.workers[worker].heartbeat.claims]
        self.workers[worker].heartbeat.beat()
        for started in beating:
            claim = started.claim
            entry = self.model.find(claim.key, now)
            kept = claim.owner in started.worker.heartbeat.claims
            assert kept is (entry is None or entry.run is started)
            if not kept:
                continue
            started.lease_end = now + claim.terms.lease_ms
            if entry is None:
                longest = max(claim.terms.lease_ms, claim.terms.ttl_ms)
                self.model.entries[claim.key] = self._pending(started, claim.fingerprint, longest)
            else:
                entry.lease_end = started.lease_end
                entry.expires = max(entry.expires, entry.lease_end)

    def _may_write(self, started: Started) -> bool:
        entry = self.model.find(started.claim.key, self.clock.now)
        started.alive = False
        return entry is None or entry.run is started

    @rule(started=consumes(runs), ttl_ms=TTLS)
    def finish(self, started: Started, ttl_ms: int) -> None:
        claim, now = started.claim, self.clock.now
        told = (("key", claim.key), ("request", str(REQUESTS.index(claim.fingerprint))))
        response = StoredResponse("200 OK", told, claim.owner)
        written = started.worker.finish(started.claim, response, ttl_ms)
        assert written is self._may_write(started)
        if written:
            self.model.entries[claim.key] = Entry(
                "D", started, claim.fingerprint, claim.attempt, now + ttl_ms, response=response
            )
            self.kept[claim.key] = Kept(claim.fingerprint, response, now + ttl_ms)

    @rule(started=consumes(runs))
    def fail(self, started: Started) -> None:
        self._failed(started, started.worker.guard.fail)

    def _failed(self, started: Started, end: Callable[[Claim], bool]) -> None:
        claim, now = started.claim, self.clock.now
        written = end(started.claim)
        assert written is self._may_write(started)
        if written:
            entry = self.model.find(claim.key, now)
            expires = entry.expires if entry else now + claim.terms.ttl_ms
            self.model.entries[claim.key] = Entry("F", started, claim.fingerprint, claim.attempt, expires)

    @rule(started=consumes(runs))
    def forget(self, started: Started) -> None:
        if started.claim.attempt > 1:  # an earlier attempt may have done something
            self._failed(started, started.worker.guard.forget)
            return
        written = started.worker.guard.forget(started.claim)
        assert written is self._may_write(started)
        if written:
            self.model.entries.pop(started.claim.key, None)

    @rule(worker=st.integers(0, WORKERS - 1))
    def die(self, worker: int) -> None:
        """A worker is killed, and a new one takes its place."""
        for started in self.started:
            if started.worker is self.workers[worker]:
                started.alive = False
        self.workers[worker] = Worker(self.store)

    @rule(ms=st.sampled_from((1, 4, 5, 9, 10, 11, 40, 160)))
    def pass_time(self, ms: int) -> None:
        self.clock.advance(ms)

    @invariant()
    def never_do_two_requests_run_under_one_key(self) -> None:
        holding = [started for started in self.started if started.alive and self.clock.now < started.lease_end]
        keys = [started.claim.key for started in holding]
        assert len(keys) == len(set(keys))

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        for key in KEYS:
            entry, record = self.model.find(key, self.clock.now), self.store.get(key)
            assert (entry is None) is (record is None)
            if entry is not None and record is not None:
                head = read_head(record)
                claim = entry.run.claim
                assert (head.state.value.decode(), head.owner, head.fingerprint, head.attempt) == (
                    entry.state,
                    claim.owner,
                    entry.fingerprint,
                    entry.attempt,
                )
                if entry.state == "P":
                    assert head.deadline == entry.lease_end


TestAnyHistory = GuardHistory.TestCase
TestAnyHistory.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
