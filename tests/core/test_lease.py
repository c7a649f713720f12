"""The heartbeat: a real thread over a store that takes notes, by a clock that the test moves.

Claims have leases of 30 ms here, so that the thread looks at its clock every 10 ms at least; but only the test moves
that clock. "It did not happen" is proved by the thread's having looked and decided, never by time passing.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from flask_idempotent.core import lease
from flask_idempotent.core.forks import PerProcess
from flask_idempotent.core.lease import Heartbeat
from flask_idempotent.core.store import Claim, StoreError

from .helpers import a_claim, until

LEASE_MS = 30
INTERVAL = LEASE_MS / 1000 / 3


class Seconds:
    """A monotonic clock that counts how often it was looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


class Notes:
    """A store that knows nothing but renewals."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.threads: list[threading.Thread] = []
        self.lost: set[str] = set()
        self.errors: list[BaseException] = []
        self.entered = threading.Event()
        self.may_go = threading.Event()
        self.may_go.set()

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        self.calls.append(sorted(claim.key for claim in claims))
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.may_go.wait(10)
        if self.errors:
            raise self.errors.pop()
        return [claim.key not in self.lost for claim in claims]

    def renewals(self, key: str) -> int:
        return sum(key in call for call in self.calls)


class World:
    """A heartbeat, its store, its clock, and the claims that it reported as lost."""

    def __init__(self, lost: Callable[[Claim], None] | None = None) -> None:
        self.clock = Seconds()
        self.store = Notes()
        self.lost: list[Claim] = []
        make = partial(Heartbeat, self.store, lost or self.lost.append, self.clock)  # type: ignore[arg-type]
        self._heartbeats = PerProcess(make)
        self._claims: list[Claim] = []

    @property
    def heartbeat(self) -> Heartbeat:
        return self._heartbeats()

    def add(self, key: str, **terms: Any) -> Claim:
        claim = a_claim(key, owner=os.urandom(16), **{"lease_ms": LEASE_MS} | terms)
        self._claims.append(claim)
        self.heartbeat.add(claim)
        return claim

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    def beat(self, renewals: int = 1) -> None:
        """Let one interval after the other pass, each with a renewal."""
        for _ in range(renewals):
            calls = len(self.store.calls)
            self.pass_time(INTERVAL * 1.001)
            until(lambda calls=calls: len(self.store.calls) > calls)

    def looked(self) -> None:
        """Wait until the thread has looked at the time twice more, and so has acted on what it says."""
        looks = self.clock.looks
        until(lambda: self.clock.looks >= looks + 4)

    def looked_once(self) -> None:
        """Wait until a new thread has looked at the time, and sleeps."""
        until(lambda: self.clock.looks >= 3)

    def end(self) -> None:
        self.store.may_go.set()
        for claim in self._claims:
            self.heartbeat.discard(claim)
        for thread in set(self.store.threads):
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(lease, "IDLE_SECONDS", 0.02)
    world = World()
    yield world
    world.end()


def test_a_lease_is_renewed_three_times_before_it_ends(world: World) -> None:
    world.add("k")
    for renewals in (1, 2, 3):
        world.pass_time(INTERVAL * 0.99)
        world.looked()
        assert world.store.renewals("k") == renewals - 1
        world.pass_time(INTERVAL * 0.01 + 1e-9)
        until(lambda renewals=renewals: world.store.renewals("k") == renewals)
        world.looked()
        assert world.store.renewals("k") == renewals
    assert world.clock.now <= 1000 + LEASE_MS / 1000 + 1e-6


def test_all_leases_are_renewed_in_one_call(world: World) -> None:
    keys = [f"k{n}" for n in range(50)]
    for key in keys:
        world.add(key)
    world.beat()
    assert world.store.calls == [sorted(keys)]
    world.beat()
    assert world.store.calls == [sorted(keys)] * 2


def test_each_lease_is_renewed_by_its_own_length(world: World) -> None:
    world.add("short")
    world.add("long", lease_ms=LEASE_MS * 4)
    world.beat(8)
    assert (world.store.renewals("short"), world.store.renewals("long")) == (8, 2)


def test_a_short_lease_that_comes_later_is_renewed_in_time(world: World) -> None:
    """The thread sleeps until the next lease is due; a shorter one must wake it."""
    world.add("long", lease_ms=3_600_000)
    world.looked_once()
    world.add("short")
    world.beat(2)
    assert world.store.calls == [["short"], ["short"]]


def test_what_is_discarded_is_renewed_no_more(world: World) -> None:
    discarded = world.add("discarded")
    world.add("witness")
    world.beat()
    world.heartbeat.discard(discarded)
    world.beat(4)
    assert world.store.calls == [["discarded", "witness"]] + [["witness"]] * 4


def test_discarding_what_was_never_there_changes_nothing(world: World) -> None:
    world.heartbeat.discard(a_claim("unknown"))
    claim = world.add("k")
    world.heartbeat.discard(claim._replace(owner=b"x" * 16))
    world.beat()
    assert world.store.renewals("k") == 1


def test_discarding_waits_for_a_renewal_that_is_under_way(world: World) -> None:
    """Else the renewal could arrive after the key was forgotten, and put its record back."""
    claim = world.add("k")
    order: list[str] = []
    world.store.may_go.clear()
    world.pass_time(INTERVAL * 1.001)
    assert world.store.entered.wait(10)

    def discard() -> None:
        world.heartbeat.discard(claim)
        order.append("discarded")

    ending = threading.Thread(target=discard)
    ending.start()
    ending.join(0.2)  # long enough for a discard that does not wait
    order.append("renewed")
    world.store.may_go.set()
    ending.join(10)
    assert order == ["renewed", "discarded"]


def test_discarding_does_not_wait_for_the_renewal_of_another_claim(world: World) -> None:
    world.add("slow")
    world.store.may_go.clear()
    world.pass_time(INTERVAL * 1.001)
    assert world.store.entered.wait(10)
    quick = world.add("quick")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(world.heartbeat.discard, quick).result(timeout=5)
    assert not world.store.may_go.is_set()


def test_a_claim_that_comes_during_a_slow_renewal_is_renewed_afterwards(world: World) -> None:
    world.add("slow")
    world.store.may_go.clear()
    world.pass_time(INTERVAL * 1.001)
    assert world.store.entered.wait(10)
    world.add("late")
    world.pass_time(INTERVAL * 1.001)
    world.store.may_go.set()
    until(lambda: world.store.renewals("late"))


def test_a_lost_claim_is_reported_once_and_renewed_no_more(world: World) -> None:
    taken = world.add("taken")
    world.add("witness")
    world.store.lost.add("taken")
    world.beat(4)
    assert world.lost == [taken]
    assert world.store.calls == [["taken", "witness"]] + [["witness"]] * 3


def test_a_late_word_about_a_request_that_has_ended_is_no_loss(world: World) -> None:
    claim = world.add("k")
    world.add("witness")
    world.store.lost.add("k")
    world.store.may_go.clear()
    world.pass_time(INTERVAL * 1.001)
    assert world.store.entered.wait(10)
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(world.heartbeat.discard, claim)
        until(lambda: claim.owner not in world.heartbeat._due)
        world.store.may_go.set()
        ended.result(timeout=10)
    world.beat()
    assert world.lost == []


def test_a_request_over_its_longest_runtime_loses_its_renewals(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add("endless", max_runtime_ms=int(INTERVAL * 1000 * 3.5))
    world.add("witness")
    world.beat(7)
    assert (world.store.renewals("endless"), world.store.renewals("witness")) == (3, 7)
    assert world.lost == []
    (warning,) = caplog.messages
    assert "IDEMPOTENCY_MAX_RUNTIME" in warning


def test_a_store_that_fails_is_asked_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.add("k")
    world.store.errors = [StoreError("away", outage=True), StoreError("full pool")]
    world.beat(3)
    assert world.store.renewals("k") == 3
    assert world.lost == []
    assert [message for message in caplog.messages if "away" in message or "full pool" in message] == caplog.messages
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    "error", [RuntimeError("a bug in a driver"), OSError("bad file descriptor"), KeyError("x")], ids=repr
)
def test_an_unforeseen_error_does_not_end_the_renewals_of_the_whole_process(
    error: Exception, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 3: a worker that is alive keeps its keys. One thread serves them all, so it must not die of one error."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    world.add("k")
    world.store.errors = [error]
    world.beat()
    world.add("later")
    world.beat()
    assert {key for call in world.store.calls[1:] for key in call} == {"k", "later"}


def test_an_observer_that_fails_does_not_end_the_renewals_of_the_whole_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(lease, "IDLE_SECONDS", 0.02)

    def fail(claim: Claim) -> None:
        raise RuntimeError("an observer's mistake")

    world = World(lost=fail)
    world.add("taken")
    world.add("witness")
    world.store.lost.add("taken")
    try:
        world.beat(3)
    finally:
        world.end()
    assert world.store.renewals("witness") == 3


def test_a_thread_that_cannot_be_started_now_is_started_by_the_next_claim(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of threads for a moment: that must not cost every later request of the process its lease."""
    start = threading.Thread.start
    refusals = [RuntimeError("can't start new thread")]

    def refuse_once(thread: threading.Thread) -> None:
        if refusals:
            raise refusals.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse_once)
    with suppress(RuntimeError):
        world.add("first")
    world.add("second")
    world.beat()
    assert world.store.renewals("second") == 1


# The thread


def heartbeats() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "idempotency-heartbeat"}


def test_no_thread_runs_before_the_first_claim_and_one_runs_for_all(world: World) -> None:
    before = heartbeats()
    Heartbeat(world.store, world.lost.append)  # type: ignore[arg-type]
    assert heartbeats() == before
    for n in range(20):
        world.add(f"k{n}")
    assert len(heartbeats() - before) == 1
    world.beat()
    (thread,) = set(world.store.threads)
    assert thread.daemon, "it must not keep a finished process alive"


def test_the_thread_ends_when_there_is_nothing_to_renew_and_another_takes_its_place(world: World) -> None:
    claim = world.add("k")
    world.beat()
    (first,) = set(world.store.threads)
    world.heartbeat.discard(claim)
    until(lambda: not first.is_alive())
    world.add("again")
    world.beat()
    assert world.store.renewals("again") == 1
    assert world.store.threads[-1] is not first


def test_one_thread_serves_many_short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a minute before it ends: a thread for each request would be dear."""
    monkeypatch.setattr(lease, "IDLE_SECONDS", 60.0)
    start, started = threading.Thread.start, []

    def count(thread: threading.Thread) -> None:
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", count)
    world = World()
    for n in range(100):
        world.heartbeat.discard(world.add(f"k{n}", lease_ms=30_000))
        started[0].join(0.001)  # its chance to see that there is nothing left
    monkeypatch.setattr(lease, "IDLE_SECONDS", 0.01)
    world.heartbeat.discard(world.add("last"))
    for thread in started:
        thread.join(10)
    assert len(started) == 1


def test_requests_that_come_and_go_do_not_wake_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them needs a renewal, and each waking costs a request as much as half of what guards it."""
    monkeypatch.setattr(lease, "IDLE_SECONDS", 60.0)
    world = World()
    world.heartbeat.discard(world.add("first", lease_ms=30_000))
    world.looked_once()
    before = world.clock.looks
    for n in range(50):
        world.heartbeat.discard(world.add(f"k{n}", lease_ms=30_000))
        time.sleep(0.001)  # the thread's chance to look
    try:
        assert world.clock.looks - before == 50, "one for each claim, none of the thread's"
    finally:
        world.heartbeat.stop()


def test_the_thread_stays_while_something_runs_however_long_its_lease(world: World) -> None:
    """An idle minute is one without claims, not one without renewals."""
    world.add("long", lease_ms=3_600_000)
    claim = world.add("short")
    world.beat()
    world.heartbeat.discard(claim)
    (thread,) = set(world.store.threads)
    thread.join(0.2)  # ten times the idle time
    assert thread.is_alive()
    world.add("next")
    world.beat()
    assert set(world.store.threads) == {thread}


def test_claims_come_and_go_in_many_threads_while_the_thread_ends_and_begins(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the interleaving, a claim that stays is renewed."""
    monkeypatch.setattr(lease, "IDLE_SECONDS", 0.0)

    def come_and_go() -> None:
        for _ in range(200):
            world.heartbeat.discard(world.add("brief"))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(come_and_go) for _ in range(8)]:
            done.result(timeout=30)
        world.add("stays")
        world.beat()
    until(lambda: world.store.renewals("stays"))


def test_a_heartbeat_that_is_stopped_ends_its_thread_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "IDLE_SECONDS", 60.0)
    before = heartbeats()
    world = World()
    world.add("long", lease_ms=3_600_000)
    (thread,) = heartbeats() - before
    world.looked_once()
    world.heartbeat.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_what_still_runs_when_the_heartbeat_is_stopped_is_renewed_no_more(world: World) -> None:
    world.add("running")
    world.beat()
    (first,) = set(world.store.threads)
    world.heartbeat.stop()
    first.join(5)
    world.add("witness")
    world.beat(3)
    assert world.store.calls == [["running"]] + [["witness"]] * 3


def test_a_heartbeat_that_was_stopped_begins_again_with_the_next_claim(world: World) -> None:
    """Whether its thread has ended by then or not."""
    world.heartbeat.stop()
    for n in range(50):
        claim = world.add(f"k{n}")
        world.beat()
        assert world.store.calls[-1] == [f"k{n}"]
        world.heartbeat.stop()
        if n % 2:
            world.store.threads[-1].join(5)
            assert not world.store.threads[-1].is_alive()
        world.heartbeat.discard(claim)


def test_stopping_during_a_renewal_does_not_hold_up_the_request_that_ends(world: World) -> None:
    claim = world.add("k")
    world.store.may_go.clear()
    world.pass_time(INTERVAL * 1.001)
    assert world.store.entered.wait(10)
    world.heartbeat.stop()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(world.heartbeat.discard, claim)
        world.store.may_go.set()
        ended.result(timeout=10)
    until(lambda: not world.store.threads[0].is_alive())
    assert world.lost == []


def in_a_child(act: Callable[[], str]) -> str:
    """What a function says in a forked child."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, act().encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as said:
        told = said.read()
    os.waitpid(pid, 0)
    return told


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_has_a_thread_of_its_own_and_leaves_its_parents_claims_alone(world: World) -> None:
    world.add("parent")
    world.beat()

    def child() -> str:
        world.store.calls.clear()
        world.add("child")
        world.pass_time(INTERVAL * 1.001)
        deadline = time.monotonic() + 5
        while not world.store.calls and time.monotonic() < deadline:
            time.sleep(0.001)
        return repr(world.store.calls)

    assert in_a_child(child) == "[['child']]"
    world.beat()
    assert world.store.calls == [["parent"]] * 2


def test_a_real_clock_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "IDLE_SECONDS", 0.02)
    store = Notes()
    heartbeat = Heartbeat(store, lambda claim: None)  # type: ignore[arg-type]
    claim = a_claim("k", lease_ms=60)
    started = time.monotonic()
    heartbeat.add(claim)
    until(lambda: store.renewals("k") >= 5)
    assert time.monotonic() - started >= 5 * 0.02
    heartbeat.discard(claim)
    until(lambda: not store.threads[0].is_alive())
