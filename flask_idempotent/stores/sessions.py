"""Open connections to a host's file, and what a fork must not do to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TypeVar
from weakref import WeakSet, finalize

from ..core.forks import PerProcess
from ..core.store import StoreError
from .hostfile import PAGE_BYTES, Identities, Opened, identities, identity, inherited
from .rows import SqlRows

Answer = TypeVar("Answer")

RESERVE: Final = 8  # one part in so many of the file is for the requests that already run, not for new keys
FEWEST_PAGES: Final = 24  # an empty file has about a dozen
MOST: Final = 8  # connections; SQLite lets one write at a time, and opening one takes longer than waiting for one
LENDING_SECONDS: Final = 10.0  # for others to give one back
CHECK_SECONDS: Final = 0.01  # a look at the file costs as much as a tenth of a claim
TEND_SECONDS: Final = 1.0
FORK_SECONDS: Final = 5.0  # for the transactions under way to end


class Replaced(Exception):
    """The file that is open is not the one that stands under its name: somebody has deleted it.

    :param identities: of the file that is open.
    """

    def __init__(self, identities: Identities) -> None:
        super().__init__(identities)
        self.identities = identities


class Session:
    """One connection at work.

    :param opened: the connection. The limit counts for the file, and for its log while somebody hinders its reset.
    """

    def __init__(self, opened: Opened) -> None:
        self._connection = opened.connection
        self._path = opened.path
        self._limit_bytes = opened.limit_bytes
        self._check_at = self._tend_at = 0.0
        self.identities = opened.identities
        self.rows = SqlRows(opened.connection)
        self.use_reserve(False)

    def transact(self, work: Callable[[SqlRows], Answer], writes: bool) -> Answer:
        """Do some work in one transaction, which is undone on any error.

        :param writes: whether to take the write lock first. Without, the first change fails with SQLITE_BUSY if
            anybody else has changed anything since the transaction's first look.
        :raises Replaced: and nothing was changed.
        :raises sqlite3.Error: likewise.
        """
        self._see_to_it()
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE" if writes else "BEGIN")
        try:
            answer = work(self.rows)
            execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                execute("ROLLBACK")
            raise
        return answer

    def step(self, work: Callable[..., Answer], *args: Any) -> Answer:
        """Do ``work(rows, *args)``, of which each statement is a transaction of its own.

        :raises Replaced: and nothing was changed.
        :raises sqlite3.Error: the statement that failed has changed nothing.
        """
        self._see_to_it()
        return work(self.rows, *args)

    def use_reserve(self, yes: bool) -> None:
        """Whether this connection may use the part of the file that new keys leave to the requests that run."""
        pages = max(self._limit_bytes // PAGE_BYTES, FEWEST_PAGES)
        self._connection.execute(f"PRAGMA max_page_count={pages if yes else pages - pages // RESERVE}")

    def close(self) -> None:
        """Close the connection; never in a process that has only inherited it."""
        self._connection.close()

    def _see_to_it(self) -> None:
        """Check the file, if that is due."""
        now = time.monotonic()
        if now >= self._check_at:
            self._check(now)

    def _check(self, now: float) -> None:
        """Is this still the file that all others see? Now and then also: are all parts of it there?"""
        self._check_at = now + CHECK_SECONDS
        try:
            if now < self._tend_at and identity(self._path) == self.identities[self._path]:
                return
            if identities(self._path) == self.identities:
                self._tend_at = now + TEND_SECONDS
                self._tend()
                return
        except FileNotFoundError:
            pass
        raise Replaced(self.identities)

    def _tend(self) -> None:
        """Keep what cleans up old files from taking the parts for abandoned, and the log from growing for ever.

        The log is reset when nobody reads it. A process that is stopped in the middle of a read hinders that.
        """
        for part in self.identities:  # the time of the last write stays
            os.utime(part, ns=(time.time_ns(), os.stat(part).st_mtime_ns))
        log = f"{self._path}-wal"
        if os.stat(log).st_size > self._limit_bytes:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self.rows.no_new_keys = None
        if os.stat(log).st_size > self._limit_bytes:
            self.rows.no_new_keys = f"{log} is too long: a process that reads the file has stopped; end it"


class _Locks:
    """Made by the first who needs them in a process: gevent may have patched the library since the fork."""

    def __init__(self) -> None:
        self.turn = threading.Condition(threading.Lock())
        self.queue = threading.Lock()


class Sessions:
    """The sessions of a process: a few, each used by one thread at a time.

    SQLite's locks do not survive a fork: the child would take the locks of its parent for its own. So nothing is open
    while a process forks; parent and child both open anew.

    :param open_: opens a session.
    """

    def __init__(self, open_: Callable[[], Session]) -> None:
        self._open = open_
        self._locks = PerProcess(_Locks)
        self._idle: list[Session] = []
        self._all: set[Session] = set()
        self._opening = 0
        self._waiting = 0
        self._forks = 0  # under way
        self._pid = os.getpid()
        _known.add(self)
        finalize(self, _close_all, self._idle)

    def lend(self) -> Session:
        """A session for the caller alone, to be given back or dropped.

        :raises StoreError: the file cannot be opened.
        """
        if self._pid != os.getpid():
            self.begin_anew()  # forked by something that does not tell Python
        try:
            session = self._idle.pop()  # which is atomic, as append is
        except IndexError:
            return self._wait_for_one()
        if self._forks:
            self.give_back(session)
            return self._wait_for_one()
        return session

    def give_back(self, session: Session) -> None:
        """The session can be used by others."""
        self._idle.append(session)
        self._tell()

    def drop(self, session: Session) -> None:
        """The session is of no use any more."""
        try:
            session.close()
        finally:
            self._all.discard(session)
            self._tell()

    @contextmanager
    def in_turn(self, seconds: float) -> Iterator[None]:
        """Try again and again as the only thread of the process that does, or after a while as one of several."""
        first = (queue := self._locks().queue).acquire(timeout=seconds)
        try:
            yield
        finally:
            if first:
                queue.release()

    def close(self) -> None:
        """Close what nobody uses. Sessions can be lent again."""
        self._close_idle()
        self._tell()

    def hold(self) -> None:
        """A fork is about to happen: let what is under way end, close everything, lend nothing."""
        turn = self._locks().turn
        with turn:
            self._forks += 1
            turn.wait_for(self._all_closed, FORK_SECONDS)

    def resume(self) -> None:
        """The fork is over, in the parent."""
        turn = self._locks().turn
        with turn:
            self._forks -= 1
            turn.notify_all()

    def begin_anew(self) -> None:
        """The fork is over, in the child. What was open nevertheless stays untouched, and its file with it."""
        self._idle.clear()
        for session in self._all:
            _left.append(session)
            inherited.update(session.identities.values())
        self._all, self._opening, self._waiting, self._forks, self._pid = set(), 0, 0, 0, os.getpid()

    def _close_idle(self) -> None:
        while self._idle:
            with suppress(IndexError):  # lent by another thread meanwhile
                session = self._idle.pop()
                try:
                    session.close()
                finally:
                    self._all.discard(session)

    def _all_closed(self) -> bool:
        """Close what nobody uses; whether that was all there is. One that is lent comes back, or is dropped."""
        self._close_idle()
        return not (self._all or self._opening)

    def _wait_for_one(self) -> Session:
        turn, found = self._locks().turn, list[Session]()
        with turn:
            self._waiting += 1
            try:
                if not turn.wait_for(lambda: self._find(found), LENDING_SECONDS):
                    raise StoreError("no connection to the host's records has become free")
            finally:
                self._waiting -= 1
        return found[0] if found else self._open_one()

    def _find(self, found: list[Session]) -> bool:
        """Whether the caller, who has the lock, has found one or may open one."""
        if self._forks:
            return False
        with suppress(IndexError):  # others do not ask for the lock
            found.append(self._idle.pop())
            return True
        if len(self._all) + self._opening < MOST:
            self._opening += 1
            return True
        return False

    def _open_one(self) -> Session:
        turn = self._locks().turn
        try:
            session = self._open()
            self._all.add(session)
            return session
        finally:
            with turn:
                self._opening -= 1
                turn.notify_all()

    def _tell(self) -> None:
        """One who waits for a session, or for all of them, may go on."""
        if self._waiting or self._forks:
            turn = self._locks().turn
            with turn:
                turn.notify_all()


_known: WeakSet[Sessions] = WeakSet()  # of the process, as forks are
_held: dict[int, list[Sessions]] = {}  # by the thread that forks
_left: list[Session] = []  # closing them would harm the parent


def _before_fork() -> None:
    held = _held[threading.get_ident()] = list(_known)
    for sessions in held:
        sessions.hold()


def _after_fork_in_parent() -> None:
    for sessions in _held.pop(threading.get_ident(), ()):
        sessions.resume()


def _after_fork_in_child() -> None:
    _held.clear()
    for sessions in list(_known):
        sessions.begin_anew()


def _close_all(idle: list[Session]) -> None:
    while idle:
        idle.pop().close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
