"""What a campaign's faults excuse, and what they do not."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from .evidence import Answer, Fault, Kind, Run

RENEWALS: Final = 3  # in a lease: a worker that stops has renewed its own a third of it ago, at most
TOLERANCE: Final = 0.1  # seconds that a busy machine may lose between two lines


@dataclass(frozen=True, slots=True)
class Rules:
    """What is promised in a campaign. Times are in seconds.

    :param lease: after which a silent worker counts as dead.
    :param rejects: whether new keys are refused while Redis is away.
    :param together: whether hosts agree at all times; else a key may run on each during an outage.
    :param settle: within which a worker has told the store what became of a view that ended, or a host has written
        back what it owes after an outage.
    :param refusal: until which after an outage new keys may still be refused.
    :param slack: beyond a lease, until a key is free again.
    :param timeout: after which the clients call an answer missing.
    """

    lease: float
    rejects: bool
    together: bool = True
    settle: float = 2.0
    refusal: float = 2.0
    slack: float = 3.0
    timeout: float = 5.0


class Timeline:
    """Faults of some kinds, to be asked for a span of time."""

    def __init__(self, faults: list[Fault], *kinds: Kind) -> None:
        self._faults = sorted((each for each in faults if each.kind in kinds), key=lambda each: each.begin)
        self._begins = [fault.begin for fault in self._faults]
        self._longest = max((fault.end - fault.begin for fault in self._faults), default=0.0)

    def touching(self, begin: float, end: float) -> list[Fault]:
        """The faults that were on at any time of a span."""
        first = bisect_left(self._begins, begin - self._longest)
        return [fault for fault in self._faults[first : bisect_right(self._begins, end)] if fault.end >= begin]


class Disturbances:
    """The faults of a campaign, by what they do."""

    def __init__(self, faults: list[Fault]) -> None:
        self.killed, self.stopped = Timeline(faults, Kind.KILLED), Timeline(faults, Kind.STOPPED)
        self.outages, self.full = Timeline(faults, Kind.OUTAGE), Timeline(faults, Kind.FULL)
        self.workers = Timeline(faults, Kind.KILLED, Kind.STOPPED)
        self.any = Timeline(faults, *(kind for kind in Kind if kind is not Kind.EMPTIED))


class Excuses:
    """What the faults of a campaign excuse in the runs and answers of one key."""

    def __init__(self, faults: Disturbances, answers: list[Answer], rules: Rules) -> None:
        self._faults, self._rules = faults, rules
        self._first_told: dict[str, float] = {}
        for answer in answers:
            if answer.done:
                self._first_told[answer.run] = min(self._first_told.get(answer.run, answer.got), answer.got)

    def find(self, earlier: Run, later: Run) -> str:
        """What excuses a run after another of the same key; empty where nothing does."""
        if earlier.failed and earlier.end is not None and earlier.end <= later.start:
            return "failed"
        if self._died(earlier, later):
            return "died"
        if self.superseded(earlier, later):
            return "stood still"
        return "apart" if self._apart(earlier, later) else ""

    def superseded(self, run: Run, other: Run) -> bool:
        """Whether one of two runs could rightly take the other's worker for dead, so that both may be answered."""
        return self._stood_still(run, other) or self._stood_still(other, run)

    def _died(self, run: Run, other: Run) -> bool:
        """Whether a worker died in a run, or before it could tell the store of the end; nobody was told of it, then."""
        end = other.start if run.end is None else min(run.end + self._rules.settle, other.start)
        deaths = self._faults.killed.touching(run.start, end)
        return run.run not in self._first_told and any(each.pid == run.pid for each in deaths)

    def _stood_still(self, run: Run, other: Run) -> bool:
        """Whether a worker stood still for a whole lease in a run, or before it, and the other run came meanwhile."""
        silence = self._rules.lease * (1 - 1 / RENEWALS) - TOLERANCE
        end = float("inf") if run.end is None else run.end + self._rules.settle
        return any(
            stop.pid == run.pid
            and stop.end - stop.begin >= silence
            and other.start >= stop.begin + silence
            and self._first_told.get(run.run, stop.end) > stop.begin
            for stop in self._faults.stopped.touching(run.start - self._rules.settle, end)
        )

    def _apart(self, earlier: Run, later: Run) -> bool:
        """Whether two hosts could not agree."""
        if self._rules.together or earlier.host == later.host:
            return False
        return bool(self._faults.outages.touching(later.start - self._rules.settle, later.start))

    def scope(self, host: str) -> str:
        """Within what the answers of a key are the same: everywhere, or on a host."""
        return "" if self._rules.together else host

    def broken(self, answer: Answer) -> bool:
        """Whether a connection may break, or an answer be missing: a worker died or stood still."""
        return bool(self._faults.workers.touching(answer.sent - self._rules.settle, answer.got))

    def refused(self, answer: Answer) -> bool:
        """Whether a request may be refused by 503."""
        full = self._faults.full.touching(answer.sent - self._rules.settle, answer.got)
        away = self._faults.outages.touching(answer.sent - self._rules.refusal, answer.got)
        return bool(full) or (self._rules.rejects and bool(away))

    def runs_at(self, run: Run, answer: Answer) -> bool:
        """Whether a run was on while a request was made, or may yet have been so for the store."""
        end = run.end if run.end is not None else self._never_ended(run)
        return run.start - self._rules.settle <= answer.got and end + self._rules.settle >= answer.sent

    def _never_ended(self, run: Run) -> float:
        deaths = [each.end for each in self._faults.killed.touching(run.start, float("inf")) if each.pid == run.pid]
        return min(deaths, default=float("inf"))

    def recent(self, answer: Answer) -> bool:
        """Whether a fault is on, or was a lease ago, for which a key may still be taken."""
        return bool(self._faults.any.touching(answer.sent - self._rules.lease - self._rules.slack, answer.got))
