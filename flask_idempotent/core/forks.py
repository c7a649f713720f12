"""What a process does not share with the one it was forked from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class PerProcess(Generic[Value]):
    """A value that each process makes for itself when it first needs it: its locks, threads and connections.

    A forked process must not use its parent's: a lock may have been held at that moment by a thread that did not come
    along. And where gevent patches the standard library after the fork (gunicorn with ``--preload``), a lock from
    before would stop all greenlets at once.

    :param make: makes one. Two threads may call it at the same moment; what one of them made is then dropped unused.
    :param abandon: called in a forked process with the value of its parent, to close what came along.
    """

    def __init__(self, make: Callable[[], Value], abandon: Callable[[Value], None] = lambda _: None) -> None:
        self._make = make
        self._abandon = abandon
        self._by_pid: dict[int, Value] = {}

    def __call__(self) -> Value:
        """The value of this process."""
        pid = os.getpid()
        try:
            return self._by_pid[pid]
        except KeyError:
            ours = self._by_pid.setdefault(pid, self._make())  # atomic: the first of several threads wins
        for other in set(self._by_pid) - {pid}:
            if (parents := self._by_pid.pop(other, None)) is not None:
                self._abandon(parents)
        return ours
