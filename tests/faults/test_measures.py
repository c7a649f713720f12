"""The numbers of a campaign, from made-up ones whose numbers are known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from .evidence import Answer, Evidence, Fault, Kind, Run
from .measures import Measures, measure

TIMEOUT = 0.25


def done(name: str, at: float, guard: float, work: float = 0.02, **more: object) -> tuple[Run, Answer]:
    """A new key at some time, with what the guard and the view took for it; the network took a millisecond."""
    end = at + guard + work
    run = Run(name, name, "a", 1, at + guard, end, 201)
    return run, replace(Answer(name, 0, 0, "a", at, end + 0.001, 201, name, name, 1, guard + work), **more)


def refused(name: str, at: float, guard: float) -> tuple[Answer]:
    return (Answer(name, 0, 0, "a", at, at + guard, 503, pid=1, took=guard),)


def outage(begin: float, end: float) -> tuple[Fault]:
    return (Fault(Kind.OUTAGE, "away", begin, end),)


def measured(*parts: tuple[Run | Answer | Fault, ...]) -> Measures:
    entries = [entry for part in parts for entry in part]

    def those(kind: type) -> list:
        return [entry for entry in entries if isinstance(entry, kind)]

    return measure(Evidence(those(Run), those(Answer), those(Fault)), TIMEOUT)


def test_medians_are_of_new_keys_before_an_outage_and_once_it_is_known():
    calm = [done(f"calm-{n}", float(n), 0.002) for n in range(5)]
    early = done("early", 10.1, 0.25)
    late = [done(f"late-{n}", 12.0 + n, 0.0005) for n in range(3)]
    got = measured(*calm, early, *late, outage(10.0, 16.0))
    assert got.calm == pytest.approx(0.002)
    assert got.outage == pytest.approx(0.0005)
    assert got.extra == pytest.approx(-0.0015)


def test_the_work_of_the_view_and_replays_do_not_count():
    run, first = done("one", 1.0, 0.002, work=0.2)
    replay = replace(first, sent=2.0, got=2.5, took=0.5, replayed=True)
    assert measured((run, first, replay)).calm == pytest.approx(0.002)


def test_without_an_outage_there_is_no_median_of_it():
    assert math.isnan(measured(done("one", 1.0, 0.002)).outage)


def test_the_slowest_answer_and_the_timeouts_of_a_worker_are_those_of_one_outage():
    first = [done("a", 10.1, 0.25), done("b", 10.1, 0.26), done("c", 10.2, 0.01), outage(10.0, 12.0)]
    second = [done("d", 20.1, 0.251), outage(20.0, 22.0)]
    got = measured(*first, *second)
    assert got.longest == pytest.approx(0.261)
    assert got.timeouts == 2


def test_what_a_stopped_worker_keeps_waiting_is_not_the_outages_doing():
    stopped = (Fault(Kind.STOPPED, "stopped", 10.0, 14.0, 1),)
    assert measured(done("a", 10.1, 3.0), outage(10.0, 15.0), stopped).longest == 0


def test_recovery_is_the_first_new_key_after_an_outage_and_refusals_are_counted_to_the_last():
    got = measured(
        refused("a", 11.0, 0.001), outage(10.0, 12.0), refused("b", 12.4, 0.001), refused("c", 12.5, 0.001),
        done("d", 12.7, 0.1), outage(20.0, 21.0), done("e", 21.1, 0.1),
    )  # fmt: skip
    assert got.recovery == pytest.approx(0.8)
    assert got.refused == pytest.approx(0.5)


def test_the_longest_wait_is_from_the_first_try_to_the_final_answer():
    tries = [replace(refused("a", 10.0 + n, 0.001)[0], tries=n) for n in range(3)]
    assert measured(tuple(tries), done("a", 13.0, 0.001, 0.0, tries=3)).wait == pytest.approx(3.002)
