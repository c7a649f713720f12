"""The store of a host: many processes on one file, and what becomes of it when they die, fork, freeze or delete it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest

from flask_idempotent.core.machine import Replay, judge
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claimed, Found, StoreError, StoreFull, TimedOut
from flask_idempotent.stores import sessions
from flask_idempotent.stores import shared as shared_module
from flask_idempotent.stores.shared import SharedStore

from .making import KEY, ME, OTHER, TTL, Clock, at_once, claim_of, elapsed, eventually, payload_of

ROOT = Path(__file__).parents[2]
Make = Callable[..., SharedStore]
Sharer = subprocess.Popen[str]
Start = Callable[..., Sharer]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the stores of the ``shared`` fixture have their file."""
    return tmp_path / "shared" / "records.sqlite"


@pytest.fixture
def start(path: Path) -> Iterator[Start]:
    """Start processes on the file; they are killed in the end."""
    started: list[Sharer] = []

    def start(*command: str) -> Sharer:
        arguments = [sys.executable, "-m", "tests.stores.sharer", str(path), *command]
        started.append(subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: Sharer) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def numbered(number: int) -> str:
    return f"idempotency:{{{number}}}"


def finish(store: SharedStore, key: str, body: bytes = b"made") -> None:
    mine = claim_of(os.urandom(16), key)
    assert store.claim(mine) == Claimed(1)
    assert store.complete(mine, payload_of(mine, body), TTL)


def body_of(store: SharedStore, key: str) -> bytes | None:
    duplicate = claim_of(os.urandom(16), key)
    found = store.claim(duplicate)
    assert isinstance(found, Found), key
    verdict = judge(found, duplicate)
    assert isinstance(verdict, Replay), key
    return verdict.response.body


def sound(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Many processes


def test_of_eight_processes_one_gets_each_key(start: Start, shared: Make) -> None:
    won = json.loads(line(start("race", "150")))
    assert len(won) == 8
    assert sorted(number for numbers in won for number in numbers) == list(range(150))
    assert sum(1 for numbers in won if numbers) > 1
    store = shared()
    for number in range(150):
        record = store.get(f"race:{{{number}}}")
        assert record is not None
        assert read_head(record).state is (State.PENDING if number % 3 else State.DONE)


def test_what_a_process_has_stored_outlives_its_killing_at_any_moment(start: Start, shared: Make, path: Path) -> None:
    stored = json.loads(line(start("kill", "40")))
    assert len(stored) >= 3 * 40
    store = shared()
    for key, size in stored.items():
        body = body_of(store, key)
        assert body is not None
        assert len(body) == int(size)
        assert store.is_owed(key)
    store.close()
    assert sound(path)


def test_many_make_the_file_at_once_and_one_that_is_killed_leaves_nothing_in_the_way(start: Start) -> None:
    assert line(start("begin", "20")) == "well"


def test_a_waiter_hears_of_the_end_of_a_request_in_another_process(start: Start, shared: Make) -> None:
    store = shared()
    store.claim(claim_of())
    waiter = start("wait", KEY)
    assert line(waiter) == "waits"
    store.renew([claim_of()])
    assert store.complete(claim_of(), payload_of(claim_of()), TTL)
    told: list[str] = []
    assert elapsed(lambda: told.append(line(waiter))) < 5
    assert told == [payload_of(claim_of()).hex()]


def test_a_waiter_holds_no_transaction(shared: Make, path: Path) -> None:
    store = shared()
    store.claim(claim_of(OTHER))
    waiter = threading.Thread(target=store.wait, args=(KEY, 10_000))
    waiter.start()
    with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
        for number in range(20):
            shared().set(numbered(number), bytes(5000), TTL)
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    assert waiter.is_alive()
    store.forget(claim_of(OTHER))
    waiter.join(5)
    assert not waiter.is_alive()


def test_waiting_looks_less_and_less_often_and_once_for_all_who_wait(
    shared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shared()
    store.claim(claim_of(OTHER))
    looks, run = count(), store._table.run
    monkeypatch.setattr(store._table, "run", lambda *args, **options: (next(looks), run(*args, **options))[1])
    assert store.wait(KEY, 400) == TimedOut()
    assert 5 < (alone := next(looks)) < 35  # 200 of them without growing pauses
    assert at_once([partial(store.wait, KEY, 400)] * 30) == [TimedOut()] * 30
    assert next(looks) - alone < 60 + 6 * 35  # 30 * 35 of them if each looked for itself


def test_the_clock_of_the_records_is_the_hosts_and_not_the_machines_time(
    start: Start, shared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shared()
    store.claim(claim_of(OTHER, "held"))
    elsewhere = [int(line(start("clock", offset))) for offset in ("0", "-1e6", "1e9")]
    monkeypatch.setattr(time, "time", lambda: 0.0)
    found = store.claim(claim_of(ME, "held"))
    assert isinstance(found, Found)
    assert elsewhere == sorted(elsewhere)
    assert 0 <= found.now_ms - elsewhere[0] < 30_000


# Frozen processes


def test_a_process_that_is_frozen_as_it_writes_holds_up_new_keys_only_and_not_for_long(
    start: Start, shared: Make
) -> None:
    store = shared()
    finish(store, KEY)
    frozen = start("stop", "write")
    assert line(frozen) == "stops"
    new = claim_of(key=numbered(1))

    def refused() -> None:
        with pytest.raises(StoreError, match="held by another process") as caught:
            store.claim(new)
        assert caught.value.outage is False
        assert not isinstance(caught.value, StoreFull)

    assert 0.2 < elapsed(refused) < 5
    assert body_of(store, KEY) == b"made"
    assert body_of(shared(), KEY) == b"made"  # a worker that starts meanwhile

    frozen.send_signal(signal.SIGCONT)
    assert line(frozen) == "thawed"
    assert store.claim(new) == Claimed(1)


def test_a_file_that_others_write_all_the_time_is_worth_waiting_for(
    shared: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What tells many writers from a frozen one is that the log changes: here somebody is always faster."""
    monkeypatch.setattr(shared_module, "BUSY_SECONDS", 0.25)
    store = shared()
    store.set("first", b"", TTL)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")

        def write() -> None:
            end = time.monotonic() + 0.8
            while time.monotonic() < end:
                os.utime(path.with_name(path.name + "-wal"))
                time.sleep(0.02)
            other.execute("COMMIT")

        writer = threading.Thread(target=write)
        writer.start()
        assert store.claim(claim_of()) == Claimed(1)
        writer.join()
        monkeypatch.setattr(shared_module, "CROWDED_SECONDS", 0.4)
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=write)
        writer.start()
        with pytest.raises(StoreError, match="written or replaced by others all the time"):
            store.claim(claim_of(key="another"))
        writer.join()


def test_an_outcome_waits_longer_than_a_new_key_for_a_file_that_is_held(shared: Make, path: Path) -> None:
    """On a busy machine a writer loses its turn for longer than a new key waits; a lost outcome would run again."""
    store = shared()
    store.claim(claim_of())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        ending = threading.Timer(1.5, other.execute, ["COMMIT"])
        ending.start()
        with pytest.raises(StoreError, match="has stopped"):
            store.claim(claim_of(key="another"))
        assert ending.is_alive()
        assert store.complete(claim_of(), payload_of(claim_of()), TTL)
        ending.join()
    assert body_of(store, KEY) == b"made"


def test_a_process_that_is_killed_as_it_writes_holds_up_nobody(start: Start, shared: Make) -> None:
    store = shared()
    frozen = start("stop", "write")
    assert line(frozen) == "stops"
    frozen.kill()
    frozen.wait(10)
    finish(store, KEY)


def test_a_process_that_is_frozen_as_it_reads_makes_the_log_grow_no_further_than_its_limit(
    start: Start, shared: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "TEND_SECONDS", 0.02)
    store = shared(limit_bytes=2_000_000)
    running, numbers = claim_of(), count()
    assert store.claim(running) == Claimed(1)
    frozen = start("stop", "read")
    assert line(frozen) == "stops"

    def refused() -> str:
        try:
            store.set(numbered(next(numbers)), b"", TTL)
        except StoreFull as error:
            return str(error)
        return ""

    why = eventually(refused, within=30)
    assert "has stopped; end it" in why
    log = path.with_name(path.name + "-wal")
    assert 2_000_000 < log.stat().st_size < 12_000_000
    assert store.complete(running, payload_of(running), TTL)

    frozen.send_signal(signal.SIGCONT)
    assert line(frozen) == "thawed"

    def taken() -> bool:
        with contextlib.suppress(StoreFull):
            return store.claim(claim_of(key="idempotency:{new}")) == Claimed(1)
        return False

    assert eventually(taken)


# Forks


@pytest.mark.parametrize("how", ["idle", "busy"])
def test_parent_and_children_of_a_fork_lose_nothing_of_each_other(
    start: Start, shared: Make, path: Path, how: str
) -> None:
    """Inherited, the parent's locks would count as the child's: its log would be deleted under its hands."""
    forker = start("fork", how)
    written = [line(forker) for _ in range(4)]
    assert forker.wait(30) == 0
    store = shared()
    for each in written:
        name, _, count = each.rpartition(" ")
        assert int(count) >= 100
        for number in range(int(count)):
            assert store.get(f"{name} {number}") == b"%d" % number, (name, number)
    store.close()
    assert sound(path)


@pytest.mark.parametrize("how", ["late", "unseen"])
def test_a_child_that_was_forked_in_the_middle_of_a_transaction_stays_away_from_the_file(
    start: Start, shared: Make, path: Path, how: str
) -> None:
    forker = start("fork-within", how)
    assert "forked off while its parent was using" in line(forker)
    assert line(forker) == "parent b'parent'"
    assert forker.wait(30) == 0
    assert shared().get("parent") == b"parent"
    assert sound(path)


# Threads


def test_threads_share_a_few_connections_and_give_them_back(shared: Make, path: Path) -> None:
    store = shared()
    before = descriptors(path)

    def work(thread: int) -> int:
        return sum(isinstance(store.claim(claim_of(bytes([thread]) * 16, numbered(n))), Claimed) for n in range(100))

    assert sum(at_once([partial(work, number) for number in range(24)])) == 100
    kept = descriptors(path) - before
    assert 0 < kept <= 3 * sessions.MOST
    store.close()
    assert descriptors(path) == before
    assert store.get(numbered(0)) is not None


def descriptors(path: Path) -> int:
    """How often this process has a file, or what SQLite keeps beside it, open."""
    links = []
    for number in os.listdir("/dev/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            links.append(os.readlink(f"/dev/fd/{number}"))
    return sum(link.startswith(str(path)) for link in links)


def test_a_store_that_is_dropped_gives_its_connections_back(shared: Make, path: Path) -> None:
    before = descriptors(path)
    store = SharedStore(path)
    finish(store, KEY)
    assert descriptors(path) > before
    del store
    gc.collect()
    assert descriptors(path) == before
    assert body_of(shared(), KEY) == b"made"


def test_two_stores_of_one_process_do_not_take_each_others_locks_away(shared: Make, start: Start) -> None:
    first, second = shared(), shared()
    finish(first, KEY)

    def close_the_other(rows: object) -> None:
        second.get(KEY)
        second.close()
        assert "held by another process" in line(start("open"))

    first._table.run(close_the_other)


# A file that is deleted


def parts(path: Path) -> list[Path]:
    return sorted(path.parent.iterdir())


@pytest.mark.parametrize("what", ["all", "the file", "the log", "the index", "replaced"])
def test_after_the_file_was_deleted_all_go_on_with_one_that_is_empty(
    shared: Make, path: Path, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sessions, "TEND_SECONDS", 0.02)
    stores = [shared(), shared()]
    for number, store in enumerate(stores):
        finish(store, numbered(number))
    if what == "replaced":
        for part in parts(path):
            part.rename(part.with_name(f"old-{part.name}"))
        finish(shared(), "idempotency:{other}")
    else:
        suffixes = {"all": ("", "-wal", "-shm"), "the file": ("",), "the log": ("-wal",), "the index": ("-shm",)}[what]
        for suffix in suffixes:
            path.with_name(path.name + suffix).unlink()

    eventually(lambda: all(store.report().in_memory_size in (0, 1) and not store.get(numbered(0)) for store in stores))
    claims = [claim_of(os.urandom(16), f"idempotency:{{after {number}}}") for number in range(20)]
    for number, claim in enumerate(claims):
        assert stores[number % 2].claim(claim) == Claimed(1)
        assert isinstance(stores[1 - number % 2].claim(claim_of(os.urandom(16), claim.key)), Found)
    assert all(store.get(numbered(number)) is None for store in stores for number in (0, 1))
    told = [record for record in caplog.records if "was deleted while in use" in record.message]
    assert 0 < len(told) <= len(stores)
    assert sound(path)


def test_a_request_that_runs_when_the_file_is_deleted_stores_its_outcome_in_the_new_one(
    shared: Make, path: Path
) -> None:
    store, mine = shared(), claim_of()
    store.claim(mine)
    for part in parts(path):
        part.unlink()
    eventually(lambda: shared().get(KEY) is None and store.get(KEY) is None)
    assert store.complete(mine, payload_of(mine), TTL)
    assert body_of(shared(), KEY) == b"made"


def test_what_cleans_up_old_files_finds_none_in_use(shared: Make, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "TEND_SECONDS", 0.02)
    store = shared()
    finish(store, KEY)
    for part in parts(path):
        os.utime(part, (0, 0))
    eventually(lambda: store.get(KEY) and all(part.stat().st_atime for part in parts(path)))


# Room


def test_what_has_expired_goes_in_passing_a_few_at_a_time(shared: Make, clock: Clock, path: Path) -> None:
    store = shared(clock=clock)
    for number in range(500):
        store.set(numbered(number), b"", 1000, owed=True)
    clock.advance(1000)
    left = [500]
    for number in range(1000, 1100):
        store.set(numbered(number), b"", TTL)
        clock.advance(1)
        left.append(rows(store, path, "records WHERE expires < 1800000001001"))
    assert left[-1] == 0
    assert max(before - after for before, after in pairwise(left)) <= 32
    for _ in range(100):
        clock.advance(1000)
        store.set(numbered(5000), b"", TTL)
    assert rows(store, path, "debts") == 0


def rows(store: SharedStore, path: Path, table: str) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        return count


def test_the_file_does_not_grow_with_the_number_of_writes(shared: Make, clock: Clock, path: Path) -> None:
    store = shared(clock=clock)
    sizes = []
    for number in range(4000):
        clock.advance(10)
        mine = claim_of(os.urandom(16), numbered(number), ttl_ms=5000, lease_ms=1000)
        store.claim(mine, owed=True)
        store.complete(mine, payload_of(mine, bytes(500)), 5000, owed=True)
        for debt in store.debts():
            store.settle(debt)
        if number % 1000 == 999:
            store.close()
            sizes.append(path.stat().st_size)
    assert sizes[3] < 1.3 * sizes[1]


def test_the_file_stays_below_its_limit(shared: Make, path: Path) -> None:
    store = shared(limit_bytes=1_000_000)
    for number in range(500):
        with contextlib.suppress(StoreFull):
            mine = claim_of(os.urandom(16), numbered(number))
            store.claim(mine)
            store.complete(mine, payload_of(mine, os.urandom(5000)), TTL)
    store.close()
    assert 500_000 < path.stat().st_size <= 1_000_000
    with pytest.raises(StoreFull, match=r"limit of 1000000 bytes.*IDEMPOTENCY_TTL"):
        store.set("idempotency:{large}", bytes(500_000), TTL)


def test_a_file_system_that_takes_no_more_is_a_clear_error_that_ends_with_its_cause(start: Start, shared: Make) -> None:
    process = start("limited")
    assert "cannot be used" in line(process)
    assert line(process) == "after b'after'"
    assert shared().get("before") == b"before"


def test_the_report_counts_what_is_alive_and_is_quick(shared: Make, clock: Clock) -> None:
    store = shared(clock=clock)
    store.set("stays", b"", TTL)
    for number in range(3):
        store.set(numbered(number), b"", 10)
    assert store.report().in_memory_size == 4
    clock.advance(10)
    report = store.report()
    assert (report.in_memory_size, report.cache_type, report.host_wide, report.outage) == (1, "memory", True, None)


def test_the_report_of_a_store_that_cannot_be_used_says_why(shared: Make, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database" * 500)
    path.chmod(0o600)
    report = shared().report()
    assert (report.cache_type, report.refused, report.in_memory_size) == ("memory", True, 0)
    assert "is damaged" in str(report.outage)


# What keeps it fast


@pytest.fixture
def told(shared: Make) -> Iterator[tuple[SharedStore, list[str]]]:
    """A store, and what it tells SQLite from now on, by its first words. No time passes there."""
    store = shared(clock=Clock())
    store.claim(claim_of(OTHER)._replace(key="idempotency:{opens the file}"))
    (session,) = store._table._sessions._idle  # type: ignore[attr-defined]
    said: list[str] = []
    session._connection.set_trace_callback(lambda sql: said.append(sql.split()[0]))
    yield store, said
    session._connection.set_trace_callback(None)


def test_a_new_key_its_outcome_and_a_replay_take_four_statements_and_no_transaction(
    told: tuple[SharedStore, list[str]],
) -> None:
    store, statements = told
    assert isinstance(store.claim(claim_of(ME)), Claimed)
    assert statements == ["SELECT", "INSERT"]
    assert store.complete(claim_of(ME), payload_of(claim_of(ME)), TTL)
    assert statements[2:] == ["UPDATE"]
    assert isinstance(store.claim(claim_of(OTHER)), Found)
    assert statements[3:] == ["SELECT"]


def test_what_is_owed_is_noted_in_the_transaction_of_the_change(told: tuple[SharedStore, list[str]]) -> None:
    store, statements = told
    assert isinstance(store.claim(claim_of(ME), owed=True), Claimed)
    assert (statements[0], statements[-1]) == ("BEGIN", "COMMIT")
    assert statements.count("BEGIN") == 1
    before = len(statements)
    assert store.complete(claim_of(ME), payload_of(claim_of(ME)), TTL, owed=True)
    assert (statements[before], statements[-1]) == ("BEGIN", "COMMIT")
    assert statements[before:].count("BEGIN") == 1


def test_of_many_at_once_one_gets_the_key_and_its_outcome_stays(shared: Make) -> None:
    """Without a transaction, too: the one that inserts the row has the key."""
    stores = [shared() for _ in range(4)]
    for number in range(30):
        claims = [claim_of(os.urandom(16))._replace(key=f"idempotency:{{{number}}}") for _ in range(8)]
        answers = at_once([partial(stores[n % 4].claim, claim) for n, claim in enumerate(claims)])
        winners = [claim for claim, answer in zip(claims, answers, strict=True) if isinstance(answer, Claimed)]
        assert len(winners) == 1
        ends = at_once([partial(stores[n % 4].complete, each, payload_of(each), TTL) for n, each in enumerate(claims)])
        assert [claim for claim, ended in zip(claims, ends, strict=True) if ended] == winners
        assert (stores[0].get(winners[0].key) or b"")[4:20] == winners[0].owner


def test_a_fork_does_not_wait_for_connections_that_another_thread_has_closed(shared: Make) -> None:
    store = shared()
    table: Any = store._table
    stop = threading.Event()

    def close_again_and_again() -> None:
        while not stop.is_set():
            store.get(KEY)
            store.close()

    threads = [threading.Thread(target=close_again_and_again) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        longest = 0.0
        for _ in range(60):
            began = time.monotonic()
            table._sessions.hold()
            assert not table._sessions._all, "nothing is open while a process forks"
            table._sessions.resume()
            longest = max(longest, time.monotonic() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert longest < sessions.FORK_SECONDS


def test_a_connection_taken_while_a_fork_begins_is_closed_before_it(
    shared: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was lent without asking for the lock, and its thread has not looked yet whether there is a fork."""
    store = shared()
    store.get(KEY)
    lent: Any = store._table._sessions  # type: ignore[attr-defined]
    session = lent._idle.pop()  # as a thread does that is stopped just behind that
    giving_back = threading.Timer(0.05, lent.give_back, [session])
    giving_back.start()
    lent.hold()
    try:
        assert not lent._all
        assert not giving_back.is_alive()
    finally:
        lent.resume()
        giving_back.join()


def test_a_session_that_finds_the_file_deleted_takes_all_others_along(shared: Make, path: Path) -> None:
    """Another one of the process may have looked at the file a moment ago, and would go on with the deleted one."""
    store, other = shared(), shared()
    claim = claim_of(ME)
    table: Any = store._table
    pair = [table._sessions.lend(), table._sessions.lend()]
    for session in pair:
        table._sessions.give_back(session)
    store.claim(claim)
    for part in list(path.parent.iterdir()):
        part.unlink()
    pair[0]._check_at, pair[1]._check_at = float("inf"), 0.0  # the last given back is the first that is lent
    assert store.complete(claim, payload_of(claim), TTL)
    assert isinstance(other.claim(claim_of(OTHER)), Found), "the outcome is in the file that all others see"
