"""A host: one gunicorn with its workers, which share a file for the local tier."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..servers.ports import Port
from ..servers.process import ServerProcess, until
from .app import VARIABLE

ROOT: Final = Path(__file__).parents[2]
ANSWER_SECONDS: Final = 2.0


class Host(ServerProcess):
    """One gunicorn. Two of them with the same ``SHARED_PATH`` are two workers of one host that can be told apart.

    :param name: as it stands in the ledger.
    :param settings: of the extension, without their prefix.
    :param ledger: the file of the runs.
    :param workers: processes.
    :param threads: of each; 1 is gunicorn's ``sync`` worker, which keeps no connection alive.
    :param variables: of their environment, beside the usual ones.
    """

    def __init__(
        self,
        directory: Path,
        name: str,
        settings: Mapping[str, Any],
        ledger: Path,
        *,
        workers: int = 1,
        threads: int = 8,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self._held = Port()
        self.name, self.port, self._wanted = name, self._held.number, workers
        given = {"settings": dict(settings), "ledger": str(ledger), "host": name}
        command = [sys.executable, "-m", "gunicorn", "--config", "python:tests.faults.gunicorn_conf"]
        command += ["--pythonpath", str(ROOT), "--bind", f"127.0.0.1:{self.port}", "--no-control-socket"]
        command += ["--workers", str(workers), "--worker-class", "gthread" if threads > 1 else "sync"]
        command += ["--threads", str(threads), "--worker-tmp-dir", str(directory), "--log-level", "warning"]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {VARIABLE: json.dumps(given), "PYTHONPATH": path}
        super().__init__(directory, command, {**os.environ, **ours, **(variables or {})})

    def answers(self) -> bool:
        """Whether it serves, with all its workers."""
        return len(self.workers()) == self._wanted and bool(self.state())

    def start(self) -> Host:
        """Start the workers and wait until they serve."""
        self.launch()
        self.await_ready()
        return self

    def stop(self) -> None:
        """Kill the master; the workers die with it."""
        workers = self.workers() if self.running else []
        super().stop()
        for pid in workers:
            until(lambda pid=pid: _gone(pid), f"the death of worker {pid}")

    def workers(self) -> list[int]:
        """The pids of the workers that there are at the moment."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split() if not _gone(int(pid))]

    def state(self) -> dict[str, Any]:
        """How the worker that happens to answer is; empty when none does."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", "/state", headers={"Connection": "close"})
            answer = connection.getresponse()
            return dict(json.loads(answer.read())) if answer.status == 200 else {}
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()


def kill(pid: int) -> None:
    """Kill a worker without a warning, and wait until it is dead."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: _gone(pid), f"the death of worker {pid}")


def stop(pid: int) -> None:
    """Stop a worker in its tracks, and wait until it stands."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _status(pid) in "TZX", f"worker {pid} to stand")


def resume(pid: int) -> None:
    """Let a stopped worker go on."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _gone(pid: int) -> bool:
    return _status(pid) in "ZX"


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
