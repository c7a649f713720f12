"""A process that shares a file of records: ``python -m tests.stores.sharer PATH COMMAND [ARGUMENT]``."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flask_idempotent.core.record import HEAD_SIZE
from flask_idempotent.core.store import Claimed, Found, StoreError
from flask_idempotent.stores import sessions
from flask_idempotent.stores.shared import SharedStore

from .making import TTL, claim_of, payload_of

RACERS = 8
SEED = 20_260_101


def tell(*words: object) -> None:
    """One line, in one write: others tell, too."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Child:
    """A process forked off to do something; what it tells goes to a file."""

    def __init__(self, work: Callable[[], None], heard: Path) -> None:
        self.heard = heard
        heard.unlink(missing_ok=True)
        self.pid = os.fork()
        if not self.pid:
            os.dup2(os.open(heard, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
            try:
                work()
                os._exit(0)
            finally:
                os._exit(1)

    def wait(self) -> int:
        """How it ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self) -> None:
        """End it at once, wherever it is."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def lines(self) -> list[str]:
        """What it told. Whole lines only."""
        return self.heard.read_text().split("\n")[:-1] if self.heard.exists() else []


def race(path: Path, rounds: str) -> None:
    """Have processes claim the same keys, each at the same moment; print which of them each has won, as JSON."""
    start = multiprocessing.get_context("fork").Barrier(RACERS)

    def run() -> None:
        store = SharedStore(path)
        for number in range(int(rounds)):
            claim = claim_of(os.urandom(16), f"race:{{{number}}}")
            start.wait(30)
            if isinstance(store.claim(claim), Claimed):
                tell(number)
                if number % 3 == 0:
                    store.complete(claim, payload_of(claim), TTL)

    path.parent.mkdir(mode=0o700)
    children = [Child(run, path.with_name(f"racer-{number}")) for number in range(RACERS)]
    assert [child.wait() for child in children] == [0] * RACERS
    tell(json.dumps([[int(each) for each in child.lines()] for child in children]))


def kill(path: Path, rounds: str) -> None:
    """Kill processes as they write; print what they had stored by then, by key, as JSON."""
    chance = random.Random(SEED)
    path.parent.mkdir(mode=0o700)
    stored: dict[str, str] = {}
    for round_ in range(int(rounds)):
        writers = [
            Child(lambda name=f"writer {round_} {number}": write(path, name), path.with_name(f"writer-{number}"))
            for number in range(3)
        ]
        while not all(writer.lines() for writer in writers):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        for writer in chance.sample(writers, 3):
            writer.kill()
            stored |= (line.rsplit(" ", 1) for line in writer.lines())
    tell(json.dumps(stored))


def write(path: Path, name: str) -> None:
    """Write outcomes without end, and tell the key and the size of each one that is stored."""
    store, number = SharedStore(path), 0
    while True:
        number += 1
        claim = claim_of(os.urandom(16), f"{name}:{{{number}}}")
        body = bytes([number % 256]) * (number * 997 % 9000)
        assert isinstance(store.claim(claim, owed=True), Claimed)
        if number % 5 == 0:
            store.fail(claim)
        elif number % 7 == 0:
            store.forget(claim)
        else:
            assert store.complete(claim, payload_of(claim, body), 50 if number % 11 == 0 else TTL, owed=True)
            if number % 11:
                tell(claim.key, len(body))


def begin(path: Path, rounds: str) -> None:
    """Have processes make the file at the same time, kill some of them, and see that the rest share one."""
    chance = random.Random(SEED)
    for _ in range(int(rounds)):
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir(mode=0o700)
        children = [
            Child(lambda key=f"key {number}": SharedStore(path).set(key, b"", TTL), path.with_name(f"child-{number}"))
            for number in range(4)
        ]
        time.sleep(chance.random() * 0.015)
        children.pop().kill()
        assert [child.wait() for child in children] == [0] * 3
        store = SharedStore(path)
        assert [store.get(f"key {number}") for number in range(3)] == [b""] * 3
        store.close()
    tell("well")


def stop_within(path: Path, how: str) -> None:
    """Freeze in the middle of a transaction."""

    def work(rows: object) -> None:
        rows.find("before", 0)  # type: ignore[attr-defined]
        tell("stops")
        os.kill(os.getpid(), signal.SIGSTOP)

    store = SharedStore(path)
    store.claim(claim_of(key="before"))
    store._table.run(work, writes=how == "write")
    tell("thawed")


def wait(path: Path, key: str) -> None:
    """Wait for a running request, and print its payload."""
    threading.Timer(0.05, tell, ["waits"]).start()
    found = SharedStore(path).wait(key, 20_000)
    tell(found.record[HEAD_SIZE:].hex() if isinstance(found, Found) else found)


def clock(path: Path, offset: str) -> None:
    """Print the time of the records, in a process for which the machine's time is another."""
    real = time.time
    time.time = lambda: real() + float(offset)
    found = SharedStore(path).claim(claim_of(os.urandom(16), "held"))
    assert isinstance(found, Found)
    tell(found.now_ms)


def open_(path: Path, _: str) -> None:
    """Write something, or say why not."""
    try:
        SharedStore(path).set("opened", b"", TTL)
        tell("opened")
    except StoreError as error:
        tell(error)


def fork(path: Path, how: str) -> None:
    """Fork while the file is open, and write in parent and children."""
    store, over = SharedStore(path), threading.Event()
    store.set("parent", b"parent", TTL)
    name = f"{os.getpid()} busy"
    busy = threading.Thread(target=lambda: write_values(store, name, lambda n: n < 100 or not over.is_set()))
    if how == "busy":
        busy.start()
    children = []
    for _ in range(3):
        if child := os.fork():
            children.append(child)
            continue
        write_values(store, f"{os.getpid()} child", lambda n: n < 100)
        time.sleep(0.2)  # the parent closes its connections meanwhile
        write_values(store, f"{os.getpid()} late child", lambda n: n < 100)
        os._exit(0)
    over.set()
    if how == "busy":
        busy.join()
    store.close()
    sys.exit(any(os.waitpid(child, 0)[1] for child in children))


def write_values(store: SharedStore, name: str, more: Callable[[int], bool]) -> None:
    """Set numbered values, and tell in one line how many."""
    number = 0
    while more(number):
        store.set(f"{name} {number}", b"%d" % number, TTL)
        number += 1
    tell(name, number)


def fork_within(path: Path, how: str) -> None:
    """Fork while another thread is in the middle of a transaction, with or without Python's knowledge."""
    sessions.FORK_SECONDS = 0.05  # type: ignore[misc]
    inside, over = threading.Event(), threading.Event()
    store = SharedStore(path)
    store.set("parent", b"parent", TTL)
    thread = threading.Thread(target=lambda: store._table.run(lambda _: (inside.set(), over.wait(10))))
    thread.start()
    inside.wait(10)
    child = os.fork() if how == "late" else ctypes.CDLL(None).fork()
    if not child:
        try:
            store.get("parent")
        except StoreError as error:
            tell(error)
        os._exit(0)
    os.waitpid(child, 0)
    over.set()
    thread.join()
    tell("parent", store.get("parent"))


def limited(path: Path, _: str) -> None:
    """Meet the largest size that a file may have, and go on when that is raised."""
    store = SharedStore(path)
    store.set("before", b"before", TTL)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for number in range(1000):
            store.set(f"value {number}", bytes(1000), TTL)
    except StoreError as error:
        tell(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.set("after", b"after", TTL)
    tell("after", store.get("after"))


COMMANDS: dict[str, Callable[[Path, str], None]] = {
    "begin": begin,
    "clock": clock,
    "fork": fork,
    "fork-within": fork_within,
    "kill": kill,
    "limited": limited,
    "open": open_,
    "race": race,
    "stop": stop_within,
    "wait": wait,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[2]](Path(sys.argv[1]), *(sys.argv[3:] or [""]))
