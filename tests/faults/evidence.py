"""What a campaign leaves behind: runs from the ledger, answers from the clients, faults from those who caused them.

Lines of JSON in three files. All times are seconds of the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

NO_ANSWER: Final = 0  # the status of a request whose connection broke, or which took too long
GIVEN_UP: Final = -1  # the status of a request that got no final answer in all the time it had


class Kind(StrEnum):
    """What a fault takes away."""

    OUTAGE = "outage"  # Redis cannot be used
    FULL = "full"  # Redis takes nothing new
    EMPTIED = "emptied"  # Redis has lost what it held; a moment within an outage
    KILLED = "killed"  # a worker has died
    STOPPED = "stopped"  # a worker stood still
    CLOCK = "clock"  # a clock was moved


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of the view.

    :param end: None where the view did not get to its end.
    :param status: with which the view ended; 0 without an end.
    """

    key: str
    run: str
    host: str
    pid: int
    start: float
    end: float | None = None
    status: int = 0

    @property
    def failed(self) -> bool:
        """Whether the view ended in a way that stands for nothing done."""
        return self.status >= 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client got for one request, or that it got nothing.

    :param send: which of the requests with this key; a repetition after 409 or 503 is another try of the same.
    :param fault: whether the request asked the view to fail.
    :param digest: of status, body and the view's own headers.
    :param pid: the worker that answered.
    :param took: seconds that it says it took, the work of the view included.
    :param sweep: whether it was asked at the end, when all faults were over.
    """

    key: str
    send: int
    tries: int
    host: str
    sent: float
    got: float
    status: int
    run: str = ""
    digest: str = ""
    pid: int = 0
    took: float = 0.0
    replayed: bool = False
    degraded: bool = False
    fault: bool = False
    sweep: bool = False
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether it says that the thing is done."""
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    :param begin: just before it was caused.
    :param end: just after it was over.
    :param pid: of the worker that it met.
    """

    kind: Kind
    name: str
    begin: float
    end: float
    pid: int = 0


@dataclass(frozen=True)
class Evidence:
    """All of a campaign."""

    runs: list[Run]
    answers: list[Answer]
    faults: list[Fault]


class Lines:
    """A file to which many processes append whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def add(self, entry: Any) -> None:
        """Append a dict or one of the values above, in a single write."""
        fields = entry if isinstance(entry, dict) else asdict(entry)
        os.write(self._file, json.dumps(fields, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file; none where there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def read_runs(path: Path) -> list[Run]:
    """The runs in a ledger, in the order of their starts."""
    starts: dict[str, dict[str, Any]] = {}
    for line in read_lines(path):
        if "end" in line:
            starts[line["run"]] |= line
        else:
            starts[line["run"]] = line
    return sorted((Run(**fields) for fields in starts.values()), key=lambda run: run.start)


def read_evidence(directory: Path) -> Evidence:
    """What lies in the directory of a campaign."""
    return Evidence(
        read_runs(directory / "ledger"),
        sorted((Answer(**line) for line in read_lines(directory / "answers")), key=lambda answer: answer.sent),
        sorted(
            (Fault(**line | {"kind": Kind(line["kind"])}) for line in read_lines(directory / "faults")),
            key=lambda fault: fault.begin,
        ),
    )
