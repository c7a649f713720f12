"""Records of all workers of one host, in one SQLite file in shared memory."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Final, TypeVar

from ..core.record import is_running
from ..core.store import TAKEOVER_MS, Claim, StoreError, StoreFull
from .hostfile import HostFile, check_path, default_path, is_damage
from .local import LocalStore
from .rows import NewKeyRefused, SqlRows
from .sessions import Replaced, Session, Sessions
from .table import Rows
from .tier import MayDrop

__all__ = ["SharedStore", "check_path", "default_path"]

log = logging.getLogger("flask_idempotent")
Answer = TypeVar("Answer")

LIMIT_BYTES: Final = 64 << 20
BUSY_SECONDS: Final = 1.0  # for which another process may hold the file and write nothing; a busy machine takes 0.3
TURN_SECONDS: Final = 0.25  # for which another thread of this process may be the one that tries
SETTLING_SECONDS: Final = 5.0  # the same, where a finished request would run again if it were not written
CROWDED_SECONDS: Final = 5.0  # for which others may always be faster
FIRST_PAUSE: Final = 0.0002  # seconds, doubled with each try
LONGEST_PAUSE: Final = 0.005
ROUNDS: Final = 8  # of making room for one record
PAUSES: Final = (0.002, 0.003, 0.005, 0.008, 0.013)  # seconds between two looks of one who waits, and then always:
LAST_PAUSES: Final = 0.02
_BUSY: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Busy(Exception):
    """Somebody else is writing, or has written since we began to read."""


class _Patience:
    """How long to try again: a file that many write is worth waiting for, one that is held by a frozen process is not.

    The pauses are made in Python and not in SQLite: other greenlets can go on meanwhile.
    """

    def __init__(self, file: HostFile, settles: bool) -> None:
        self._file = file
        self._stillness = SETTLING_SECONDS if settles else BUSY_SECONDS
        self._began = self._progress = time.monotonic()
        self._written = file.last_written()
        self._pause = 0.0

    def wait(self, error: Exception) -> None:
        """Sleep until the next try.

        :raises StoreError: it is hopeless.
        """
        now = time.monotonic()
        if now - self._began > CROWDED_SECONDS + self._stillness:
            raise StoreError(f"{self._file.path} is written or replaced by others all the time") from error
        if now - self._progress > self._stillness:
            before, self._written, self._progress = self._written, self._file.last_written(), now
            if self._written == before:
                raise StoreError(f"{self._file.path} is held by another process, which has stopped: end it") from error
        time.sleep(self._pause * random.uniform(0.5, 1.5))  # noqa: S311
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)


class SharedTable:
    """A :class:`~flask_idempotent.stores.table.Table` in a file.

    :param file: where the rows are.
    :param clock: milliseconds since the epoch; None for the clock of the file, which is the same for all who open it.
    """

    def __init__(self, file: HostFile, clock: Callable[[], int] | None) -> None:
        self.may_drop: MayDrop = lambda _marks: ()
        self._file = file
        self._ahead: float | None = None  # of the host's monotonic clock
        self._sessions = Sessions(self._open)
        self.now = clock or self._file_now

    def run(self, work: Callable[[Rows], Answer], *, writes: bool = True, settles: bool = False) -> Answer:
        """See :class:`~flask_idempotent.stores.table.Table`.

        :raises StoreFull: there is no room, and none can be made.
        :raises StoreError: the file cannot be used, or another process holds it. That is no outage: nobody else knows
            what it holds.
        """
        try:
            answer: Answer = self._once(Session.transact, work, writes)
            return answer
        except NewKeyRefused:
            raise
        except Replaced as replaced:
            self._begin_anew(replaced)
        except (_Busy, StoreFull):
            pass
        return self._again(work, settles)

    def at_once(self, work: Callable[..., Answer], *args: Any) -> Answer | None:
        """See :class:`~flask_idempotent.stores.table.Table`.

        :raises StoreError: the file cannot be used.
        """
        try:
            answer: Answer = self._once(Session.step, work, *args)
            return answer
        except Replaced as replaced:
            self._begin_anew(replaced)
        except (_Busy, StoreFull):
            pass
        return None

    def close(self) -> None:
        """See :class:`~flask_idempotent.stores.table.Table`."""
        self._sessions.close()

    def _again(self, work: Callable[[SqlRows], Answer], settles: bool) -> Answer:
        """Do some work that could not be done at once; make room if that is what it lacks."""
        for _ in range(ROUNDS):
            try:
                return self._patiently(work, settles)
            except NewKeyRefused:
                raise
            except StoreFull:
                if not self._make_room():
                    break
        return self._patiently(work, settles, reserve=True)

    def _patiently(self, work: Callable[[SqlRows], Answer], settles: bool = False, *, reserve: bool = False) -> Answer:
        """Do some work with the write lock, as soon as others let us have it."""

        def do(session: Session) -> Answer:
            return self._in_reserve(session, work) if reserve else session.transact(work, True)

        patience = _Patience(self._file, settles)
        with self._sessions.in_turn(TURN_SECONDS):
            while True:
                try:
                    return self._once(do)
                except _Busy as busy:
                    patience.wait(busy)
                except Replaced as replaced:
                    self._begin_anew(replaced)
                    patience.wait(replaced)

    def _once(self, do: Callable[..., Answer], *args: Any) -> Answer:
        """``do(session, *args)``, with every error as one of ours."""
        session, fit = None, False
        try:
            session = self._sessions.lend()
            answer = do(session, *args)
            fit = True
            return answer
        except StoreError:
            fit = True
            raise
        except (sqlite3.Error, OSError) as error:
            told = self._translated(error)
            fit = isinstance(told, _Busy | StoreFull)
            raise told from error
        finally:
            if session is not None:
                self._sessions.give_back(session) if fit else self._sessions.drop(session)

    def _in_reserve(self, session: Session, work: Callable[[SqlRows], Answer]) -> Answer:
        """Do some work that is not about a new key in the part that is kept for that."""
        rows, refused = session.rows, session.rows.no_new_keys
        session.use_reserve(True)
        rows.no_new_keys = refused or self._full()
        try:
            return session.transact(work, True)
        finally:
            rows.no_new_keys = refused
            session.use_reserve(False)

    def _make_room(self) -> bool:
        """Remove what can be removed; whether that was anything."""
        try:
            if self._patiently(lambda rows: rows.sweep_more(self.now()), reserve=True):
                return True
            marks = self._patiently(lambda rows: rows.droppable(self.now()), reserve=True)
            given_up = {key: marks[key] for key in self.may_drop(marks)}  # which may ask Redis: we hold nothing up
            self._patiently(lambda rows: rows.drop_settled(given_up, self.now()), reserve=True)
            return bool(given_up)  # if not by us, they have been dropped by another worker
        except StoreFull:
            return False

    def _open(self) -> Session:
        opened = self._file.open()
        self._ahead = opened.offset
        return Session(opened)

    def _begin_anew(self, replaced: Replaced) -> None:
        """Everybody goes over to the file that stands under the name now, or to a new one."""
        self._sessions.close()
        if self._file.abandon(replaced.identities):
            log.error("idempotency: %s was deleted while in use: what it held is forgotten", self._file.path)

    def _translated(self, error: sqlite3.Error | OSError) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _BUSY:
            return _Busy()
        if code == sqlite3.SQLITE_FULL:
            return StoreFull(self._full())
        if is_damage(error):
            return StoreError(
                f"{self._file.path} is damaged ({error}), and what it held is lost:"
                " end all workers, move it away and start them again"
            )
        return StoreError(f"{self._file.path} cannot be used: {error}; see IDEMPOTENCY_SHARED_PATH")

    def _full(self) -> str:
        return (
            f"{self._file.path} has reached its limit of {self._file.limit_bytes} bytes, or what its file system has"
            " left: give it more room, shorten IDEMPOTENCY_TTL or use Redis"
        )

    def _file_now(self) -> int:
        """The time by the file's clock; in a transaction, for it is known when the file is open."""
        seconds = time.time() if self._ahead is None else self._ahead + time.monotonic()
        return int(seconds * 1000)


class SharedStore(LocalStore):
    """A store for all workers of one host. Opens nothing before it is used, and survives a fork.

    What it cannot do it says by :class:`~flask_idempotent.core.store.StoreError`, which is no outage. A damaged file is
    such an error, and is not replaced: an empty one would forget outcomes without a word.

    :param path: of the file, on a local file system; see :func:`default_path` and :func:`check_path`.
    :param limit_bytes: how large the file may grow.
    :param clock: milliseconds since the epoch, the same for all who open the file; by default the host's monotonic
        clock, which setting the machine's time does not move.
    """

    host_wide = True
    keeps_early = True

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES, *, clock: Callable[[], int] | None = None) -> None:
        self.path = path
        table = SharedTable(HostFile(path, limit_bytes), clock)
        super().__init__(table, table.now)
        self._polled_at = 0.0

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.stores.tier.LocalTier`."""
        done = bool(self._table.at_once(self._complete_early, claim, payload, ttl_ms))
        if done and self._waiters:
            self._wake(claim.key)
        return done

    def _complete_early(self, rows: SqlRows, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        now = self._clock()
        lasts = is_running(rows.find(claim.key, now)[0] or b"", now + claim.terms.lease_ms // 2)
        return lasts and self._complete_at_once(rows, claim, payload, ttl_ms)

    def _rest(self, changed: threading.Event, deadline: float) -> None:
        """Other processes do not tell when they end a request: look again, and again."""
        for pause in chain(PAUSES, repeat(LAST_PAUSES)):
            left = deadline - time.monotonic()
            if left <= 0 or changed.wait(min(left, pause)):
                return
            self._poll(pause)

    def _poll(self, pause: float) -> None:
        """Look for all who wait in this process, unless another of them just did."""
        now = time.monotonic()
        if now - self._polled_at < pause / 2:
            return
        self._polled_at = now
        keys = {key for key, _ in list(self._waiters.values())}
        for key in self._table.run(partial(self._ended, keys), writes=False):
            self._wake(key)

    def _ended(self, keys: Iterable[str], rows: Rows) -> list[str]:
        """Those of some keys under which no request is running."""
        now = self._clock()
        return [key for key in keys if not is_running(rows.find(key, now)[0] or b"", now - TAKEOVER_MS)]
