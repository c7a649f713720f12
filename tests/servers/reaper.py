"""Kills the servers of a test run that ends in a way that no fixture sees: by SIGKILL, SIGTERM or a crash.

A process of its own, told of every server on its standard input. That input ends when the test run does.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO


class Reaper:
    """The test run's side. One process for all servers, started with the first."""

    def __init__(self) -> None:
        self._pid = 0
        self._pipe: IO[str] | None = None

    def watch(self, pid: int) -> None:
        """A server has started."""
        self._tell(f"+{pid}")

    def forget(self, pid: int) -> None:
        """A server has been ended and waited for: its number may soon be another process's."""
        self._tell(f"-{pid}")

    def _tell(self, line: str) -> None:
        if self._pipe is None or self._pid != os.getpid():
            command = [sys.executable, "-I", "-S", __file__]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
            )
            process.returncode = 0  # it outlives us: nobody waits for it
            self._pid, self._pipe = os.getpid(), process.stdin
        assert self._pipe is not None
        self._pipe.write(line + "\n")
        self._pipe.flush()


REAPER = Reaper()


def reap() -> None:
    """The reaper's side."""
    alive: set[int] = set()
    for line in sys.stdin:
        (alive.add if line[0] == "+" else alive.discard)(int(line[1:]))
    for pid in alive:
        for each in (signal.SIGCONT, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, each)


if __name__ == "__main__":
    reap()
