"""A campaign's report, and what is needed to look into a failure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from .checker import Wrong
from .evidence import NO_ANSWER, Answer, Fault, Run
from .play import Play

SHOWN: Final = 3  # keys of a failure
LINES: Final = 20  # of a key, at its beginning and at its end
CLOSE_SECONDS: Final = 1.0  # faults that are shown around the runs of a key


def summary(play: Play) -> str:
    """The numbers, in a few lines."""
    count, measures = play.verdict.count, play.measures
    answers = [each for each in play.evidence.answers if each.status > NO_ANSWER]
    statuses = Counter(each.status for each in answers)
    lines = [
        f"{play.campaign.name}, {play.policy}, seed {play.seed}: {'FAILED' if play.verdict.findings else 'passed'}",
        f"  {len(answers)} answers ({', '.join(f'{n} x {status}' for status, n in sorted(statuses.items()))}), "
        f"{len(play.evidence.runs)} runs, {len(play.evidence.faults)} faults in {play.seconds:.0f} s",
        f"  extra runs {count(Wrong.EXTRA_RUN, Wrong.LOST_OUTCOME)}, lost outcomes {count(Wrong.LOST_OUTCOME)}, "
        f"changed answers {count(Wrong.CHANGED_ANSWER)}, stuck {count(Wrong.STUCK)}, unexpected "
        f"{count(Wrong.UNEXPECTED, Wrong.WITHDRAWN, Wrong.FROM_NOWHERE)}; runs that may come again: "
        + (", ".join(f"{n} {excuse}" for excuse, n in play.verdict.excused.items()) or "none"),
        f"  new keys take {measures.calm * 1000:.2f} ms, in an outage {measures.extra * 1000:+.2f} ms (medians); "
        f"slowest in an outage {measures.longest * 1000:.0f} ms, {measures.timeouts} timeouts of a worker at most; "
        f"recovery {measures.recovery * 1000:.0f} ms, last refusal after {measures.refused * 1000:.0f} ms; "
        f"longest wait for a final answer {measures.wait:.1f} s",
    ]
    return "\n".join(lines)


def details(play: Play) -> str:
    """The first keys that went wrong with all that is known of them."""
    keys = list(dict.fromkeys(finding.key for finding in play.verdict.findings))[:SHOWN]
    counts = Counter(finding.what for finding in play.verdict.findings)
    head = ", ".join(f"{n} x {what}" for what, n in counts.items())
    return "\n".join(
        [f"repeat with --seed {play.seed}; {head}", *(line for key in keys for line in _of_key(play, key))]
    )


def _of_key(play: Play, key: str) -> Iterator[str]:
    yield f"key {key}"
    yield from (f"  {each.what}: {each.detail}" for each in play.verdict.findings if each.key == key)
    runs = [run for run in play.evidence.runs if run.key == key]
    answers = [answer for answer in play.evidence.answers if answer.key == key]
    times = [run.start for run in runs] + [answer.sent for answer in answers]
    begin, end = min(times) - CLOSE_SECONDS, max(times) + CLOSE_SECONDS
    lines = [(run.start, _run(run)) for run in runs] + [(each.sent, _answer(each)) for each in answers]
    lines += [(each.begin, _fault(each)) for each in play.evidence.faults if each.begin <= end and each.end >= begin]
    told = [f"  {when:.3f} {line}" for when, line in sorted(lines)]
    yield from told if len(told) <= 2 * LINES else [*told[:LINES], "  ...", *told[-LINES:]]


def _run(run: Run) -> str:
    ended = "never ended" if run.end is None else f"until {run.end:.3f}, {run.status}"
    return f"run {run.run} in {run.host}/{run.pid} {ended}"


def _answer(answer: Answer) -> str:
    whose = f"send {answer.send} try {answer.tries}{' sweep' * answer.sweep}{' to fail' * answer.fault}"
    what = f"{answer.status}{' replayed' * answer.replayed} run {answer.run or '-'} {answer.error}"
    return f"{whose}: {what} from {answer.host}/{answer.pid} at {answer.got:.3f}, {answer.digest}"


def _fault(fault: Fault) -> str:
    return f"FAULT {fault.name}{f' {fault.pid}' * bool(fault.pid)} until {fault.end:.3f}"
