"""What a process does not share with the one it was forked from."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final, TypeVar
from weakref import WeakSet

Value = TypeVar("Value")


class PerProcess(dict[int, Value]):
    """A value that each process makes for itself when it first needs it: its locks, threads and connections.

    A forked process must not use its parent's: a lock may have been held at that moment by a thread that did not come
    along. And where gevent patches the standard library after the fork (gunicorn with ``--preload``), a lock from
    before would stop all greenlets at once.

    It is called for the value, or indexed by ``os.getpid()`` where every request passes: that is one call less.

    :param make: makes one. Two threads may call it at the same moment; what one of them made is then dropped unused.
    :param abandon: called in a forked process with the value of its parent, to close what came along.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def __init__(self, make: Callable[[], Value], abandon: Callable[[Value], None] = lambda _: None) -> None:
        super().__init__()
        self._make = make
        self._abandon = abandon
        _ALL.add(self)

    def __missing__(self, pid: int) -> Value:
        return self.setdefault(pid, self._make())  # atomic: the first of several threads wins

    def __call__(self) -> Value:
        """The value of this process."""
        return self[os.getpid()]

    def leave(self) -> None:
        """In a forked process: let go of what came along."""
        ours = os.getpid()
        for pid in [pid for pid in self if pid != ours]:
            self._abandon(self.pop(pid))


_ALL: Final[WeakSet[PerProcess[Any]]] = WeakSet()


def _leave_all() -> None:
    for each in list(_ALL):
        each.leave()


os.register_at_fork(after_in_child=_leave_all)
