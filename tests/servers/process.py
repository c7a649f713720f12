"""A server process of a test: started on loopback, its log kept, and killed by its pid in any case."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from .reaper import REAPER

Value = TypeVar("Value")

START_SECONDS: Final = 20.0  # on a busy machine; it takes 30 ms on a quiet one
LOG_LINES: Final = 30  # shown when a start fails


def until(condition: Callable[[], Value], what: str, within: float = START_SECONDS) -> Value:
    """Poll until a condition is truthy, and return what it gave.

    :param what: is waited for; told when it did not come about.
    :param within: seconds.
    """
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {within:g} seconds"
        time.sleep(0.02)
    return value


class ServerProcess:
    """One process. It may be started, stopped and frozen as often as the test likes.

    :param directory: of its own, where the log goes.
    :param command: the program and its arguments.
    :param env: its environment, when it is not ours.
    """

    def __init__(self, directory: Path, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.log = directory / "log"
        self._command = list(command)
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    @property
    def pid(self) -> int:
        assert self._process is not None, f"not running: {self._command}"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """With what the process has ended by itself; None while it runs."""
        assert self._process is not None, f"not running: {self._command}"
        return self._process.poll()

    def launch(self) -> None:
        """Start the process without waiting until it answers."""
        assert self._process is None, f"runs already: {self._command}"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the test run alone
            )
        REAPER.watch(self._process.pid)

    def await_ready(self) -> None:
        """Wait until the process answers; kill it and show its log when it does not."""
        try:
            until(lambda: not self.running or self.answers(), "an answer")
            assert self.running, f"exited with {self._process and self._process.returncode}"
        except BaseException as error:
            self.stop()
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
            error.add_note("\n".join([f"{' '.join(self._command)}", f"{self.log} says:", *lines]))
            raise

    def answers(self) -> bool:
        """Whether the server serves."""
        raise NotImplementedError

    def stop(self) -> None:
        """Kill the process, whatever state it is in."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
            self.frozen = False
            REAPER.forget(process.pid)

    def freeze(self) -> None:
        """Stop the process in its tracks; on return it does nothing any more. Its sockets stay."""
        os.kill(self.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        self.frozen = True

    def thaw(self) -> None:
        """Let a frozen process go on."""
        os.kill(self.pid, signal.SIGCONT)
        self.frozen = False
