"""Processes in which requests wait."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from .. import ours, wsgi
from ..requests import View

APP = "waiting"
PATIENCE = 20  # seconds


class Crowd:
    """Some processes with some threads each, all of them with an app over the same store.

    :param settings: of the apps, by their names without ``IDEMPOTENCY_``.
    """

    def __init__(self, settings: dict[str, Any], processes: int, threads: int) -> None:
        spawning = multiprocessing.get_context("spawn")  # nothing of this process is theirs
        self._threads = threads
        self._asked: list[Connection] = []
        self._ends: list[Connection] = []
        self._processes = []
        for _ in range(processes):
            end, other = spawning.Pipe()
            process = spawning.Process(target=_serve, args=(other, settings, threads), daemon=True)
            process.start()
            self._ends.append(end)
            self._processes.append(process)
        for end in self._ends:
            _receive(end)

    def send(self, key: str, count: int) -> None:
        """Send ``count`` requests with a key, as many from each process as from the others; returns when all are on
        their way.
        """
        self._asked = self._ends[: max(count // self._threads, 1)]
        for end in self._asked:
            end.send((key, min(count, self._threads)))
        for end in self._asked:
            _receive(end)

    def answered(self) -> list[float]:
        """When each of them got its answer, in monotonic seconds, which all processes of a machine share."""
        return [instant for end in self._asked for instant in _receive(end)]

    def close(self) -> None:
        """End the processes."""
        for end, process in zip(self._ends, self._processes, strict=True):
            end.close()
            process.join(PATIENCE)


def _receive(end: Connection) -> Any:
    if not end.poll(PATIENCE):
        raise RuntimeError("a process of the benchmark does not answer")
    return end.recv()


def _serve(end: Connection, settings: dict[str, Any], threads: int) -> None:
    """The life of one process: says that it is there, then answers to each order twice."""
    view = View()
    app = ours.guarded(view, APP, settings)
    assert app is not None
    send = wsgi.sender(app)
    began = threading.Semaphore(0)

    def wait_for(key: str) -> float:
        began.release()
        send(key)
        return time.monotonic()

    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        stack.callback(app.extensions["idempotency"].close, app)
        end.send("ready")
        while True:
            try:
                key, count = end.recv()
            except EOFError:
                return
            waiting = [pool.submit(wait_for, key) for _ in range(count)]
            for _ in waiting:
                began.acquire()
            end.send("sent")
            end.send([each.result() for each in waiting])
            assert view.runs == 0, "a request that should have waited ran the view"
