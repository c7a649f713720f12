"""A real gunicorn for tests: a master and its workers, each of which can be frozen or killed by itself."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from .ports import Port
from .process import ServerProcess, until

ROOT: Final = Path(__file__).parents[2]


class Gunicorn(ServerProcess):
    """A master with its workers on a port of its own.

    :param app: as gunicorn takes it, such as ``package.module:create()``.
    :param kind: of worker, ``gthread`` or ``gevent``.
    :param workers: how many.
    :param threads: of each, where the kind has threads.
    :param preload: whether the app is made in the master, before the workers are forked.
    """

    def __init__(
        self,
        directory: Path,
        app: str,
        *,
        kind: str = "gthread",
        workers: int = 2,
        threads: int = 16,
        preload: bool = False,
    ) -> None:
        self._held = Port()
        self.port = self._held.number
        self._workers = workers
        options = ["--worker-class", kind, "--workers", str(workers), "--threads", str(threads), "--timeout", "0"]
        options += ["--bind", f"127.0.0.1:{self.port}", "--worker-tmp-dir", str(directory), "--no-control-socket"]
        options += ["--pythonpath", str(ROOT), *(["--preload"] if preload else [])]
        super().__init__(directory, [sys.executable, "-m", "gunicorn", *options, app])

    @property
    def pids(self) -> Sequence[int]:
        """Of the workers."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def holders(self, port: int) -> set[int]:
        """The processes of it that have a connection from this port of theirs open."""
        inodes = {f"socket:[{inode}]" for local, inode in _sockets() if local == port}
        return {pid for pid in (self.pid, *self.pids) if inodes & set(_open_files(pid))}

    def answers(self) -> bool:
        if len(self.pids) < self._workers:
            return False
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5) as client:
            client.sendall(b"GET /nowhere HTTP/1.0\r\n\r\n")
            return client.recv(4) == b"HTTP"
        return False

    def start(self) -> Gunicorn:
        self.launch()
        self.await_ready()
        return self

    def end(self, within: float = 15.0) -> int:
        """Ask it to stop, as an operator does; the exit status when all of it has ended."""
        process, pids = self._process, self.pids
        assert process is not None
        process.terminate()
        until(lambda: process.poll() is not None and not any(map(_alive, pids)), "the end of gunicorn", within)
        return process.returncode

    def stop(self) -> None:
        pids = self.pids if self.running else []
        super().stop()
        for pid in pids:
            for each in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.kill(pid, each)


def _sockets() -> Iterator[tuple[int, str]]:
    """The local port and the inode of every TCP connection of this machine."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        yield int(fields[1].rpartition(":")[2], 16), fields[9]


def _open_files(pid: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it is closed by now
            yield str(descriptor.readlink())


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
