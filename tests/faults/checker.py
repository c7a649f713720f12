"""Judges a campaign by what it left behind. Knows nothing of the package, only what it promises.

Of one key, no two runs overlap or follow each other unless the first one's worker died, stood still past its lease or
failed; what was answered is answered the same for ever; no key is stuck; and nothing is answered that nobody allows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .evidence import GIVEN_UP, NO_ANSWER, Answer, Evidence, Run
from .excuses import Disturbances, Excuses, Rules

UNKNOWN_RUN: Final = Run("", "", "", 0, 0.0)


class Wrong(StrEnum):
    """What must not happen."""

    EXTRA_RUN = "extra run"
    LOST_OUTCOME = "lost outcome"  # an extra run of what a client had been told to be done
    CHANGED_ANSWER = "changed answer"
    WITHDRAWN = "answered, and refused later"
    STUCK = "stuck"
    UNEXPECTED = "unexpected answer"
    FROM_NOWHERE = "answer of no run"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that went wrong."""

    what: Wrong
    key: str
    detail: str


@dataclass(frozen=True)
class Verdict:
    """All that went wrong, and how often the promise's exceptions were used.

    :param excused: pairs of runs by what excuses the second one.
    """

    findings: list[Finding]
    excused: Counter[str]

    def count(self, *what: Wrong) -> int:
        """How many findings of some kinds there are."""
        return sum(finding.what in what for finding in self.findings)


def check(evidence: Evidence, rules: Rules) -> Verdict:
    """Judge all keys of a campaign."""
    runs, answers = _by_key(evidence.runs), _by_key(evidence.answers)
    known = {run.run: run for run in evidence.runs}
    faults = Disturbances(evidence.faults)
    findings: list[Finding] = []
    excused: Counter[str] = Counter()
    for key in runs.keys() | answers.keys():
        judge = _Key(key, runs[key], answers[key], known, Excuses(faults, answers[key], rules))
        findings += judge.findings()
        excused += judge.excused
    return Verdict(sorted(findings, key=lambda finding: (finding.what, finding.key)), excused)


def _by_key(entries: Iterable[Run] | Iterable[Answer]) -> defaultdict[str, list]:
    by_key: defaultdict[str, list] = defaultdict(list)
    for entry in entries:
        by_key[entry.key].append(entry)
    return by_key


class _Key:
    """One key's runs and answers, each in the order of time."""

    def __init__(
        self, key: str, runs: list[Run], answers: list[Answer], known: dict[str, Run], excuses: Excuses
    ) -> None:
        self._key, self._runs, self._answers, self._known, self._excuses = key, runs, answers, known, excuses
        self.excused: Counter[str] = Counter()

    def findings(self) -> Iterator[Finding]:
        """Everything that is wrong about the key."""
        yield from self._extra_runs()
        yield from self._changed_answers()
        for answer in self._answers:
            yield from self._wrong_answer(answer)

    def _found(self, what: Wrong, detail: str) -> Finding:
        return Finding(what, self._key, detail)

    def _extra_runs(self) -> Iterator[Finding]:
        for number, later in enumerate(self._runs):
            excuses = [(earlier, self._excuses.find(earlier, later)) for earlier in self._runs[:number]]
            self.excused.update(excuse for _, excuse in excuses if excuse)
            for earlier in [earlier for earlier, excuse in excuses if not excuse]:
                told = any(each.done and each.run == earlier.run and each.got <= later.start for each in self._answers)
                what = Wrong.LOST_OUTCOME if told else Wrong.EXTRA_RUN
                yield self._found(what, f"run {later.run} at {later.start:.3f} though {earlier.run} ran")

    def _changed_answers(self) -> Iterator[Finding]:
        """One run has one answer; one key has one replay, and no other answers but those of excused runs."""
        done = [answer for answer in self._answers if answer.done]
        for run in {answer.run for answer in done}:
            if len({answer.digest for answer in done if answer.run == run}) > 1:
                yield self._found(Wrong.CHANGED_ANSWER, f"run {run} has several answers")
        for host in {self._excuses.scope(answer.host) for answer in done}:
            here = [answer for answer in done if self._excuses.scope(answer.host) == host]
            replays = {answer.run for answer in here if answer.replayed}
            if len(replays) > 1:
                yield self._found(Wrong.CHANGED_ANSWER, f"replays of the runs {sorted(replays)}")
            told = [run for run in self._runs if run.run in {answer.run for answer in here}]
            for number, later in enumerate(told):
                if not all(self._excuses.superseded(earlier, later) for earlier in told[:number]):
                    yield self._found(Wrong.CHANGED_ANSWER, f"run {later.run} was answered, and another before")

    def _wrong_answer(self, answer: Answer) -> Iterator[Finding]:
        """What is wrong about an answer by itself, and after those before it."""
        when = f"{answer.status} at {answer.got:.3f} from {answer.host}/{answer.pid}"
        if answer.status == GIVEN_UP:
            yield self._found(Wrong.STUCK, f"no final answer by {answer.got:.3f}")
            return
        if answer.run and not self._is_of(answer, self._known.get(answer.run, UNKNOWN_RUN)):
            yield self._found(Wrong.FROM_NOWHERE, f"{when} of run {answer.run}")
        if not self._allowed(answer):
            yield self._found(Wrong.UNEXPECTED, f"{when}: {answer.error}")
        elif answer.status in (409, 503) and self._told_before(answer):
            yield self._found(Wrong.WITHDRAWN, when)
        elif answer.status == 409 and not self._may_be_busy(answer):
            yield self._found(Wrong.STUCK, f"{when}, {answer.tries} tries")

    def _is_of(self, answer: Answer, run: Run) -> bool:
        return (run.key, run.status) == (self._key, answer.status) and run.start <= answer.got

    def _allowed(self, answer: Answer) -> bool:
        """Whether anything about this campaign allows an answer with this status."""
        if answer.status == NO_ANSWER:
            return self._excuses.broken(answer)
        if answer.status == 503:
            return self._excuses.refused(answer)
        if answer.status == 500:
            return bool(answer.run)
        return answer.done or answer.status == 409

    def _told_before(self, answer: Answer) -> bool:
        """Whether the same host had answered the key for good, with a run that no other one could supersede."""
        told = [
            self._known.get(each.run, UNKNOWN_RUN)
            for each in self._answers
            if each.done and each.got <= answer.sent and each.host == answer.host
        ]
        return any(not any(self._excuses.superseded(run, other) for other in self._runs) for run in told)

    def _may_be_busy(self, answer: Answer) -> bool:
        """Whether the key can be taken: by a run, by a request that is on its way, or by a worker that is gone."""
        running = any(self._excuses.runs_at(run, answer) for run in self._runs)
        asking = any(each is not answer and _overlap(each, answer) for each in self._answers)
        return running or asking or self._excuses.recent(answer)


def _overlap(one: Answer, other: Answer) -> bool:
    return one.sent <= other.got and other.sent <= one.got and one.status != GIVEN_UP
