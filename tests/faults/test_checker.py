"""The checker is told of made-up campaigns: what is wrong in them it must find, and what is right it must let pass."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from . import checker, evidence, excuses
from .checker import Verdict, Wrong, check
from .evidence import GIVEN_UP, NO_ANSWER, Answer, Evidence, Fault, Kind, Lines, Run, read_evidence
from .excuses import Rules

RULES = Rules(lease=2.0, rejects=False)
REJECTING = replace(RULES, rejects=True)
APART = replace(RULES, together=False)


def run(name: str, start: float, end: float | None, *, pid: int = 1, status: int = 201, host: str = "a") -> Run:
    return Run("k", name, host, pid, start, end, 0 if end is None else status)


def answer(run: str, sent: float, got: float, status: int = 201, *, host: str = "a", **more: object) -> Answer:
    return replace(Answer("k", 0, 0, host, sent, got, status, run, digest=run, pid=1), **more)


def replay(run: str, sent: float, *, host: str = "a") -> Answer:
    return answer(run, sent, sent + 0.01, host=host, replayed=True)


def busy(sent: float, *, host: str = "a") -> Answer:
    return answer("", sent, sent + 0.01, 409, host=host)


def unavailable(sent: float, *, host: str = "a") -> Answer:
    return answer("", sent, sent + 0.01, 503, host=host)


def fault(kind: Kind, begin: float, end: float, pid: int = 0) -> Fault:
    return Fault(kind, kind.value, begin, end, pid)


def judge(*entries: Run | Answer | Fault, rules: Rules = RULES) -> Verdict:
    def those(kind: type) -> list:
        return [entry for entry in entries if isinstance(entry, kind)]

    by_time = sorted(those(Run), key=lambda each: each.start), sorted(those(Answer), key=lambda each: each.sent)
    return check(Evidence(*by_time, those(Fault)), rules)


def wrongs(*entries: Run | Answer | Fault, rules: Rules = RULES) -> list[Wrong]:
    return sorted(finding.what for finding in judge(*entries, rules=rules).findings)


ONE = (run("one", 10.0, 10.02), answer("one", 9.99, 10.03))


# What is right


@pytest.mark.parametrize(
    "entries",
    [
        ONE,
        (*ONE, busy(10.0), replay("one", 11.0), replay("one", 500.0)),
        (run("bad", 10.0, 10.02, status=500), answer("bad", 9.99, 10.03, 500), run("good", 10.5, 10.6),
         answer("good", 10.49, 10.61)),
    ],
    ids=["one", "replayed", "failed first"],
)  # fmt: skip
def test_one_run_and_its_replays_are_right(entries: tuple[Run | Answer, ...]):
    assert wrongs(*entries) == []


def test_a_key_runs_again_when_its_worker_was_killed():
    dead = fault(Kind.KILLED, 10.005, 10.006, pid=1)
    again = run("two", 12.1, 12.2, pid=2), answer("two", 12.09, 12.21)
    assert wrongs(run("one", 10.0, None), dead, busy(11.0), *again) == []
    assert wrongs(run("one", 10.0, 10.004), dead, *again) == []  # it died before it could tell the store
    assert wrongs(run("one", 10.0, None), fault(Kind.KILLED, 10.005, 10.006, pid=7), *again) == [Wrong.EXTRA_RUN]


def test_a_key_runs_again_when_its_worker_stood_still_for_a_lease():
    still = fault(Kind.STOPPED, 10.01, 13.5, pid=1)
    first = run("one", 10.0, 13.52), answer("one", 9.99, 13.53)
    again = run("two", 12.1, 12.2, pid=2), answer("two", 12.09, 12.21)
    assert wrongs(*first, still, *again, replay("two", 14.0)) == []
    assert Wrong.LOST_OUTCOME not in wrongs(*first, fault(Kind.STOPPED, 10.01, 11.0, pid=1), *again)
    assert Wrong.EXTRA_RUN in wrongs(*first, fault(Kind.STOPPED, 10.01, 11.0, pid=1), *again)


def test_a_worker_that_stood_still_after_its_claim_may_begin_late():
    still = fault(Kind.STOPPED, 10.0, 13.5, pid=1)
    again = run("two", 12.1, 12.2, pid=2), answer("two", 12.09, 12.21)
    late = run("one", 13.51, 13.53), answer("one", 9.99, 13.54)
    assert wrongs(*again, still, *late) == []
    assert Wrong.LOST_OUTCOME in wrongs(*again, *late)


# Runs that must not be


def test_a_second_run_is_found_whether_it_overlaps_or_follows():
    assert wrongs(run("one", 10.0, 10.2), run("two", 10.1, 10.3)) == [Wrong.EXTRA_RUN]
    assert wrongs(run("one", 10.0, 10.2), run("two", 90.0, 90.1)) == [Wrong.EXTRA_RUN]
    assert wrongs(run("one", 10.0, 10.2, status=500), run("two", 10.1, 10.3)) == [Wrong.EXTRA_RUN]


def test_a_run_after_its_client_was_told_is_a_lost_outcome_and_another_answer():
    told = (*ONE, run("two", 20.0, 20.1), answer("two", 19.99, 20.11))
    assert wrongs(*told) == [Wrong.CHANGED_ANSWER, Wrong.LOST_OUTCOME]
    assert Wrong.LOST_OUTCOME in wrongs(*told, fault(Kind.KILLED, 10.5, 10.6, pid=1)), "it had told its client"
    assert Wrong.LOST_OUTCOME in wrongs(*told, fault(Kind.STOPPED, 10.5, 14.0, pid=1)), "it had told its client"


def test_every_run_of_a_key_is_held_against_all_before_it():
    died = run("one", 10.0, None), fault(Kind.KILLED, 10.01, 10.02, pid=1)
    third = run("three", 15.0, 15.1, pid=3)
    assert wrongs(*died, run("two", 12.5, 12.6, pid=2), third) == [Wrong.EXTRA_RUN]


def test_an_outage_excuses_a_run_on_another_host_where_hosts_need_not_agree_and_nowhere_else():
    away = fault(Kind.OUTAGE, 10.1, 12.0)
    here = run("one", 10.5, 10.6), answer("one", 10.49, 10.61)
    there = run("two", 11.0, 11.1, host="b", pid=2), answer("two", 10.99, 11.11, host="b")
    assert wrongs(*here, *there, away, rules=APART) == []
    assert judge(*here, *there, away, rules=APART).excused == {"apart": 1}
    assert Wrong.LOST_OUTCOME in wrongs(*here, *there, away)
    assert Wrong.LOST_OUTCOME in wrongs(*here, run("two", 11.0, 11.1, pid=2), away, rules=APART)
    assert Wrong.LOST_OUTCOME in wrongs(*here, run("two", 14.5, 14.6, host="b"), away, rules=APART)


# Answers that must not be


def test_an_answer_that_changes_is_found():
    assert wrongs(*ONE, answer("one", 11.0, 11.01, digest="other bytes", replayed=True)) == [Wrong.CHANGED_ANSWER]
    away = fault(Kind.OUTAGE, 10.1, 12.0)
    there = run("two", 11.0, 11.1, host="b", pid=2), answer("two", 10.99, 11.11, host="b")
    assert wrongs(*ONE, *there, away, replay("two", 12.0), rules=APART) == [Wrong.CHANGED_ANSWER], "of a host"


def test_an_answer_of_no_run_or_of_another_keys_is_found():
    assert wrongs(*ONE, replay("unknown", 11.0)) == [Wrong.FROM_NOWHERE]
    other = replace(run("one", 10.0, 10.02), key="other")
    assert Wrong.FROM_NOWHERE in wrongs(other, answer("one", 9.99, 10.03))


def test_a_host_that_has_answered_must_not_refuse_later():
    away = fault(Kind.OUTAGE, 10.5, 12.0)
    assert wrongs(*ONE, busy(10.5)) == [Wrong.WITHDRAWN]
    assert wrongs(*ONE, away, unavailable(11.0), rules=REJECTING) == [Wrong.WITHDRAWN]
    assert wrongs(*ONE, away, unavailable(11.0, host="b"), rules=REJECTING) == []


def test_refusals_for_want_of_redis_are_right_while_it_is_away_and_the_route_rejects():
    away = fault(Kind.OUTAGE, 10.0, 12.0)
    assert wrongs(away, unavailable(11.0), rules=REJECTING) == []
    assert wrongs(away, unavailable(11.0)) == [Wrong.UNEXPECTED]
    assert wrongs(away, unavailable(15.0), rules=REJECTING) == [Wrong.UNEXPECTED]
    assert wrongs(fault(Kind.FULL, 10.0, 12.0), unavailable(11.0)) == []


@pytest.mark.parametrize("status", [302, 400, 422, 502])
def test_other_answers_are_unexpected(status: int):
    assert wrongs(answer("", 10.0, 10.01, status)) == [Wrong.UNEXPECTED]


def test_a_failure_is_right_only_where_the_view_has_failed():
    failed = run("one", 10.0, 10.02, status=500)
    assert wrongs(failed, answer("one", 9.99, 10.03, 500)) == []
    assert wrongs(failed, answer("", 9.99, 10.03, 500)) == [Wrong.UNEXPECTED]
    assert wrongs(run("one", 10.0, 10.02), answer("one", 9.99, 10.03, 500)) == [Wrong.FROM_NOWHERE]


def test_connections_break_only_where_a_worker_dies_or_stands_still():
    broken = answer("", 10.0, 10.01, NO_ANSWER)
    assert wrongs(broken) == [Wrong.UNEXPECTED]
    assert wrongs(broken, fault(Kind.KILLED, 9.5, 9.51, pid=1)) == []
    assert wrongs(broken, fault(Kind.OUTAGE, 9.5, 9.51)) == [Wrong.UNEXPECTED]


# Keys that are stuck


def test_a_request_that_is_given_up_is_stuck():
    assert wrongs(answer("", 10.0, 40.0, GIVEN_UP)) == [Wrong.STUCK]


def test_a_key_is_busy_for_no_longer_than_a_lease_after_the_last_thing_that_could_take_it():
    died = run("one", 10.0, None), fault(Kind.KILLED, 10.01, 10.02, pid=1)
    assert wrongs(*died, busy(11.9)) == []
    assert wrongs(*died, busy(16.0)) == [Wrong.STUCK]
    assert wrongs(run("one", 10.0, 10.1), busy(20.0)) == [Wrong.STUCK]
    assert wrongs(run("one", 10.0, 20.1), busy(20.0)) == []
    assert wrongs(busy(20.0)) == [Wrong.STUCK]
    assert wrongs(busy(20.0), answer("", 19.9, 20.05, 409)) == [], "either may hold it and lose it"


# The files


def test_what_is_written_down_is_read_again(tmp_path: Path):
    ledger, answers, faults = (Lines(tmp_path / name) for name in ("ledger", "answers", "faults"))
    ledger.add({"key": "k", "run": "two", "host": "a", "pid": 1, "start": 11.0})
    ledger.add({"key": "k", "run": "one", "host": "a", "pid": 1, "start": 10.0})
    ledger.add({"run": "one", "end": 10.5, "status": 201})
    answers.add(answer("one", 9.0, 10.6))
    faults.add(fault(Kind.KILLED, 11.0, 11.1, pid=1))
    for lines in (ledger, answers, faults):
        lines.close()
    assert read_evidence(tmp_path) == Evidence(
        [run("one", 10.0, 10.5), run("two", 11.0, None)],
        [answer("one", 9.0, 10.6)],
        [fault(Kind.KILLED, 11.0, 11.1, pid=1)],
    )


def test_the_checker_knows_nothing_of_the_package():
    for module in (checker, evidence, excuses):
        nodes = list(ast.walk(ast.parse(Path(str(module.__file__)).read_text())))
        ours = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
        others = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
        others |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        assert ours <= {"evidence", "excuses"}
        assert {name.partition(".")[0] for name in others} <= set(sys.stdlib_module_names)
