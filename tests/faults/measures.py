"""How long requests took before and during the outages of a campaign, and how soon all was well again after them."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Final

from .evidence import NO_ANSWER, Answer, Evidence, Fault, Kind
from .excuses import Timeline

CALM_SECONDS: Final = 1.0  # from the beginning of an outage until every worker knows; after its end until none minds
SLOW: Final = 0.8  # of the store's timeout: what takes so long has met one
QUIET: Final = (Kind.OUTAGE, Kind.FULL, Kind.KILLED, Kind.STOPPED)


@dataclass(frozen=True)
class Measures:
    """Times in seconds, without what the view took for its work.

    :param calm: median of what a worker took for a new key while nothing was wrong.
    :param outage: median of what it took for a new key, whether it ran or was refused, once an outage is known.
    :param longest: the slowest answer in an outage, as a client saw it.
    :param timeouts: answers of one worker in one outage that met a timeout; the most of all.
    :param recovery: from the end of an outage to the first new key that is answered; the longest of all.
    :param refused: from the end of an outage to the last request that is refused; the longest of all.
    :param wait: from the first try of a request to its final answer; the longest of all.
    """

    calm: float
    outage: float
    longest: float
    timeouts: int
    recovery: float
    refused: float
    wait: float

    @property
    def extra(self) -> float:
        """What an outage adds to the median."""
        return self.outage - self.calm


class _Campaign:
    """Answers, each with the time that the guard took for it."""

    def __init__(self, evidence: Evidence) -> None:
        self._runs = {run.run: run for run in evidence.runs}
        self.answers = [each for each in evidence.answers if each.status > NO_ANSWER and not each.sweep]
        self._busy = Timeline(evidence.faults, *QUIET)
        self._workers = Timeline(evidence.faults, Kind.KILLED, Kind.STOPPED)
        self.outages = [fault for fault in evidence.faults if fault.kind is Kind.OUTAGE]

    def work(self, answer: Answer) -> float:
        """Seconds that the view worked for an answer."""
        run = None if answer.replayed else self._runs.get(answer.run)
        return 0.0 if run is None or run.end is None else run.end - run.start

    def overhead(self, answer: Answer) -> float:
        """Seconds that the worker took beside the work of the view."""
        return answer.took - self.work(answer)

    def new(self, answer: Answer) -> bool:
        """Whether the answer is one to a new key, that ran or was refused."""
        return answer.status == 503 or (answer.status == 201 and not answer.replayed)

    def calm(self) -> list[float]:
        """What new keys took while nothing was wrong."""
        return [
            self.overhead(each)
            for each in self.answers
            if self.new(each) and not self._busy.touching(each.sent - CALM_SECONDS, each.got)
        ]

    def within(self, outage: Fault, after: float = 0.0) -> list[Answer]:
        """The answers of an outage, but for those that waited for a worker that was stopped or killed."""
        return [
            each
            for each in self.answers
            if each.sent < outage.end
            and each.got > outage.begin + after
            and not self._workers.touching(each.sent - CALM_SECONDS, each.got)
        ]

    def recovery(self, outage: Fault) -> float | None:
        """From the end of an outage to the first new key that is answered; None where another outage came first."""
        later = [run.start for run in self._runs.values() if run.start > outage.end and run.status == 201]
        first = min(later, default=None)
        following = min((each.begin for each in self.outages if each.begin > outage.end), default=float("inf"))
        return None if first is None or first > following else first - outage.end

    def refused(self, outage: Fault) -> float:
        """From the end of an outage to the last request that was made before the next one, and refused."""
        following = min((each.begin for each in self.outages if each.begin > outage.end), default=float("inf"))
        refused = [
            each.sent for each in self.answers if each.status == 503 and outage.end < each.sent and each.got < following
        ]
        return max(refused, default=outage.end) - outage.end


def measure(evidence: Evidence, timeout: float) -> Measures:
    """Measure a campaign.

    :param timeout: of the store.
    """
    campaign = _Campaign(evidence)
    during: list[float] = []
    longest, timeouts, recovery, refused = 0.0, 0, 0.0, 0.0
    for outage in campaign.outages:
        met = campaign.within(outage)
        longest = max([longest, *(each.got - each.sent - campaign.work(each) for each in met)])
        slow = Counter(each.pid for each in met if campaign.overhead(each) >= SLOW * timeout)
        timeouts = max([timeouts, *slow.values()])
        settled = campaign.within(outage, after=CALM_SECONDS)
        during += [
            campaign.overhead(each)
            for each in settled
            if campaign.new(each) and each.sent > outage.begin + CALM_SECONDS
        ]
        recovery = max(recovery, campaign.recovery(outage) or 0.0)
        refused = max(refused, campaign.refused(outage))
    return Measures(
        _median(campaign.calm()), _median(during), longest, timeouts, recovery, refused, _longest_wait(evidence)
    )


def _longest_wait(evidence: Evidence) -> float:
    first: dict[tuple[str, int, bool], float] = {}
    longest = 0.0
    for answer in evidence.answers:
        began = first.setdefault((answer.key, answer.send, answer.sweep), answer.sent)
        longest = max(longest, answer.got - began)
    return longest


def _median(times: list[float]) -> float:
    return statistics.median(times) if times else float("nan")
