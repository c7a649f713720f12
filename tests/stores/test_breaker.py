"""The breaker: two failures in a row open it, and a background probe closes it."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from flask_idempotent.core.store import StoreError
from flask_idempotent.stores import breaker as module
from flask_idempotent.stores.breaker import Breaker

from .making import alive, at_once, eventually

ROOT = Path(__file__).parents[2]
AWAY = StoreError("Redis is away: refused", outage=True)


class Recovery:
    """What a breaker calls to recover: gives the answers it was told, the last one for ever."""

    def __init__(self, *answers: bool | Exception) -> None:
        self.answers = list(answers)
        self.calls = 0
        self.running = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self) -> bool:
        self.calls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.running.set()
        assert self.go_on.wait(10)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def recovery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recovery]:
    """Away until told otherwise; back when the test ends, so that no probe stays behind."""
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.02)
    monkeypatch.setattr(module, "LEFTOVER_SECONDS", 0.02)
    recovery = Recovery(AWAY)
    yield recovery
    recovery.answers = [True]
    recovery.go_on.set()
    eventually(lambda: not alive("probe"))


def test_it_opens_at_the_second_failure_in_a_row(recovery: Recovery) -> None:
    breaker = Breaker(recovery)
    assert breaker.is_open is False
    breaker.failed(AWAY)
    assert breaker.is_open is False
    breaker.failed(AWAY)
    assert breaker.is_open is True


def test_a_success_in_between_starts_the_count_anew(recovery: Recovery) -> None:
    breaker = Breaker(recovery)
    for _ in range(5):
        breaker.failed(AWAY)
        breaker.succeeded()
    assert breaker.is_open is False


def test_only_the_probe_ends_an_outage(recovery: Recovery) -> None:
    breaker = Breaker(recovery)
    breaker.failed(AWAY)
    breaker.failed(AWAY)
    breaker.succeeded()
    assert breaker.is_open is True
    eventually(lambda: recovery.calls > 3)
    assert breaker.is_open is True
    recovery.answers = [True]
    eventually(lambda: not breaker.is_open)
    assert breaker.reason is None


def test_the_probe_ends_when_nothing_is_left_to_do(recovery: Recovery) -> None:
    recovery.answers = [True]
    breaker = Breaker(recovery)
    breaker.failed(AWAY)
    eventually(lambda: not alive("probe"))
    assert recovery.calls == 1
    breaker.failed(AWAY)
    eventually(lambda: recovery.calls == 2)


def test_no_thread_is_started_before_it_is_needed(recovery: Recovery) -> None:
    Breaker(recovery).succeeded()
    assert alive("probe") == []


def test_leftovers_close_the_breaker_and_are_tried_again(recovery: Recovery) -> None:
    recovery.answers = [False]
    breaker = Breaker(recovery)
    breaker.failed(AWAY)
    breaker.failed(AWAY)
    eventually(lambda: not breaker.is_open)
    eventually(lambda: recovery.calls > 3)
    assert len(alive("probe")) == 1
    recovery.answers = [True]
    eventually(lambda: not alive("probe"))


def test_there_is_one_probe_however_many_fail(recovery: Recovery) -> None:
    breaker = Breaker(recovery)
    at_once([partial(breaker.failed, AWAY)] * 20 + [breaker.probe] * 20)
    assert len(alive("probe")) == 1
    assert breaker.is_open


def test_what_is_left_to_do_while_the_probe_finishes_is_not_forgotten(recovery: Recovery) -> None:
    recovery.answers = [True]
    recovery.go_on.clear()
    breaker = Breaker(recovery)
    breaker.probe()
    assert recovery.running.wait(5)
    breaker.probe()  # something new is owed, which the recovery that is about to end has not seen
    recovery.go_on.set()
    eventually(lambda: recovery.calls == 2, within=2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_probe_that_stumbles_gets_up_again(recovery: Recovery, caplog: pytest.LogCaptureFixture) -> None:
    recovery.answers = [RuntimeError("nobody thought of this"), True]
    breaker = Breaker(recovery)
    breaker.failed(AWAY)
    breaker.failed(AWAY)
    eventually(lambda: not breaker.is_open, within=2)


def test_an_outage_is_logged_once_and_so_is_its_end(recovery: Recovery, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "flask_idempotent")
    breaker = Breaker(recovery)
    for round_ in (1, 2):
        at_once([partial(breaker.failed, AWAY)] * 10)
        assert breaker.reason == str(AWAY)
        recovery.answers = [True]
        eventually(lambda: not alive("probe"))
        recovery.answers = [AWAY]
        assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * round_
    assert "refused" in caplog.records[0].getMessage()


def test_what_is_owed_without_an_outage_is_not_logged_as_one(
    recovery: Recovery, caplog: pytest.LogCaptureFixture
) -> None:
    recovery.answers = [False, True]
    Breaker(recovery).probe()
    eventually(lambda: recovery.calls == 2)
    eventually(lambda: not alive("probe"))
    assert caplog.records == []


def test_a_probe_that_was_told_to_stop_says_so_after_its_last_question(recovery: Recovery) -> None:
    said: list[int] = []
    recovery.go_on.clear()
    breaker = Breaker(recovery, stopped=lambda: said.append(recovery.calls))
    breaker.probe()
    assert recovery.running.wait(5)
    breaker.stop()
    assert said == []
    recovery.go_on.set()
    eventually(lambda: not alive("probe"))
    assert said == [1]


def leave_over(recovery: Recovery, monkeypatch: pytest.MonkeyPatch, first: float) -> None:
    """Something can never be written; it is tried again after so many seconds, and then at longer intervals."""
    monkeypatch.setattr(module, "FIRST_LEFTOVER_SECONDS", first)
    monkeypatch.setattr(module, "LEFTOVER_SECONDS", 60)
    recovery.answers = [False]


def test_what_cannot_be_written_is_tried_again_soon_and_then_more_and_more_seldom(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_over(recovery, monkeypatch, 0.02)
    breaker = Breaker(recovery)
    began = time.monotonic()
    breaker.probe()
    eventually(lambda: recovery.calls == 5)
    assert time.monotonic() - began > 0.02 + 0.04 + 0.08 + 0.16
    breaker.stop()


def test_what_cannot_be_written_does_not_keep_the_probe_from_looking(
    recovery: Recovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_over(recovery, monkeypatch, 60)
    looks = Counter[str]()

    def glance() -> bool:
        looks["looked"] += 1
        return True  # as long as something is owed

    breaker = Breaker(recovery, glance)
    breaker.probe()
    eventually(lambda: looks["looked"] > 3)
    assert recovery.calls == 1
    breaker.stop()


def test_an_outage_that_begins_while_something_is_left_over_is_noticed(recovery: Recovery) -> None:
    recovery.answers = [False, AWAY]
    breaker = Breaker(recovery)
    breaker.probe()
    eventually(lambda: breaker.reason == str(AWAY))
    recovery.answers = [True]
    eventually(lambda: breaker.reason is None)
    assert breaker.ended > 0


def test_something_new_in_between_is_tried_soon(recovery: Recovery, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_over(recovery, monkeypatch, 0.02)
    breaker = Breaker(recovery)
    breaker.probe()
    eventually(lambda: recovery.calls == 5)
    breaker._again_at = float("inf")
    breaker.hurry()
    eventually(lambda: recovery.calls == 8)
    breaker.stop()


def test_the_probe_opens_the_breaker_where_nobody_asks(recovery: Recovery) -> None:
    breaker = Breaker(recovery)
    breaker.failed(AWAY)
    eventually(lambda: breaker.is_open)
    recovery.answers = [True]
    eventually(lambda: not breaker.is_open)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_probe_that_the_hosts_code_has_ended_is_replaced(recovery: Recovery) -> None:
    told: list[bool] = []

    def changed(away: bool) -> None:
        told.append(away)
        if len(told) == 2:
            raise RuntimeError("a filter of the host's log")

    breaker = Breaker(recovery, changed=changed)
    breaker.failed(AWAY)
    recovery.answers = [True]
    eventually(lambda: told == [True, False] and not alive("probe"))
    recovery.answers = [AWAY]
    breaker.failed(AWAY)
    assert alive("probe")
    recovery.answers = [True]
    eventually(lambda: told == [True, False, True, False])


FORKED = """
import os, time
from flask_idempotent.core.forks import PerProcess
from flask_idempotent.core.store import StoreError
from flask_idempotent.stores import breaker as module
from tests.stores.making import eventually
away = StoreError("away", outage=True)
def recover():
    if os.getpid() == parent:
        raise away
    return True
parent = os.getpid()
module.PROBE_SECONDS = 0.05
breaker = PerProcess(lambda: module.Breaker(recover))
breaker().failed(away); breaker().failed(away)
child = os.fork()
if child == 0:
    breaker().failed(away); breaker().failed(away)
    eventually(lambda: not breaker().is_open)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), breaker().is_open)
"""


def test_a_forked_worker_probes_for_itself() -> None:
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["7", "True"], done.stderr
