"""The rows of a SQLite file, in SQL."""

from __future__ import annotations

from collections.abc import Mapping
from sqlite3 import Connection
from typing import Any, Final

from ..core.record import DEADLINE_SIZE, HEAD_SIZE, MARK, UNDATED_SIZE, State
from ..core.store import StoreFull
from .tier import Debt

SCHEMA: Final = (
    "CREATE TABLE origin (boot TEXT NOT NULL, ahead REAL NOT NULL)",
    "CREATE TABLE records (key TEXT PRIMARY KEY NOT NULL, expires INTEGER NOT NULL, settled INTEGER NOT NULL,"
    " record BLOB NOT NULL)",
    "CREATE INDEX records_by_expiry ON records (settled, expires)",
    "CREATE TABLE debts (serial INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, owner BLOB NOT NULL,"
    " lease_ms INTEGER NOT NULL, expires INTEGER NOT NULL, UNIQUE (key, owner))",
    "CREATE TABLE notes (name TEXT PRIMARY KEY NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
)

LAST_ROW: Final = 2**63 - 1
SWEEP_MS: Final = 250  # between two looks for what has expired
SWEPT: Final = 16  # rows per transaction that writes a new key, while there are any
ROOM: Final = 256  # expired rows that are removed at once when the file is full
CANDIDATES: Final = 64  # settled rows that are looked at then
DROPPED: Final = 500  # rows per transaction when copies are dropped

_FIND = "SELECT record, expires FROM records WHERE key = ?"
_PUT = (
    "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE"
    " SET expires = excluded.expires, settled = excluded.settled, record = excluded.record"
)
_PUT_NEW = "INSERT INTO records VALUES (?, ?, ?, ?) ON CONFLICT (key) DO NOTHING"
# No part of the pattern is a parameter: SQLite would prepare the statement anew each time.
_REPLACE = (
    "UPDATE records SET expires = ?, settled = ?, record = ? WHERE key = ? AND expires > ?"  # noqa: S608 - of constants
    f" AND substr(record, 1, {UNDATED_SIZE}) = ? AND length(record) = {HEAD_SIZE}"
    f" AND CAST(substr(record, {UNDATED_SIZE + 1}) AS TEXT) GLOB '{'[0-9]' * DEADLINE_SIZE}'"
)
_REMOVE = "DELETE FROM records WHERE key = ?"
_PAGE = "SELECT rowid, key, record, expires FROM records WHERE rowid < ? ORDER BY rowid DESC LIMIT ?"
_COUNT = (
    "SELECT (SELECT count(*) FROM records) - (SELECT count(*) FROM records WHERE settled = 0 AND expires <= :now)"
    " - (SELECT count(*) FROM records WHERE settled = 1 AND expires <= :now)"
)
_SWEEP = "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE settled = ? AND expires <= ? LIMIT ?)"
_MARK = f"coalesce(substr(record, {MARK.start + 1}, {MARK.stop - MARK.start}), x'')"  # NULL of an empty value
_DROPPABLE = f"SELECT key, expires, {_MARK} FROM records WHERE settled = 1 AND expires >= ? ORDER BY expires LIMIT ?"  # noqa: S608
_DROP = f"DELETE FROM records WHERE key = ? AND settled = 1 AND {_MARK} = ?"  # noqa: S608 - of constants
_COPIES = (  # the deadline of a claim is text within its record
    "SELECT rowid, settled OR substr(record, ?, ?) <= ?, EXISTS (SELECT 1 FROM debts WHERE debts.key = records.key)"
    " FROM records WHERE rowid > ? ORDER BY rowid LIMIT ?"
)
_OWE = "INSERT OR REPLACE INTO debts (key, owner, lease_ms, expires) VALUES (?, ?, ?, ?)"
_DEBTS = (
    "SELECT key, owner, lease_ms, serial, expires FROM debts WHERE serial > ? AND expires > ? ORDER BY serial LIMIT ?"
)
_OLD_DEBTS = "SELECT serial, expires FROM debts WHERE serial > ? ORDER BY serial LIMIT ?"


class NewKeyRefused(StoreFull):
    """There is no room for a new key, and no way to make any."""


class SqlRows:
    """See :class:`~flask_idempotent.stores.table.Rows`, for one connection.

    :param connection: to a file with the :data:`SCHEMA`.
    """

    def __init__(self, connection: Connection) -> None:
        self._execute = connection.execute
        self._sweep_at = 0
        self._swept_debt = 0  # where the look for expired debts goes on
        self._dropped_at = 0  # where the look for droppable records goes on
        self.no_new_keys: str | None = None  # why there is room only for what runs

    def find(self, key: str, now: int) -> tuple[bytes | None, int]:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        row = self._execute(_FIND, (key,)).fetchone()
        return row if row is not None and row[1] > now else (None, 0)

    def put(self, key: str, record: bytes, expires: int, now: int) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`. Removes some of what has expired in passing."""
        if self.no_new_keys and self.find(key, now)[0] is None:
            raise NewKeyRefused(self.no_new_keys)
        self._execute(_PUT, (key, expires, _is_settled(record), record))
        if now >= self._sweep_at:
            more = self._sweep(now, SWEPT) == SWEPT
            self._sweep_debts(now)
            self._sweep_at = now if more else now + SWEEP_MS

    def put_new(self, key: str, record: bytes, expires: int, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        if self.no_new_keys or now >= self._sweep_at:
            return False
        return self._execute(_PUT_NEW, (key, expires, _is_settled(record), record)).rowcount > 0

    def replace(self, key: str, start: bytes, record: bytes, expires: int, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._execute(_REPLACE, (expires, _is_settled(record), record, key, now, start)).rowcount > 0

    def remove(self, key: str) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._execute(_REMOVE, (key,))

    def page(self, before: int, limit: int, now: int) -> tuple[list[tuple[str, bytes, int]], int | None]:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        rows = self._execute(_PAGE, (before or LAST_ROW, limit)).fetchall()
        live = [(key, record, expires) for _, key, record, expires in rows if expires > now]
        return live, rows[-1][0] if len(rows) == limit else None

    def drop_copies(self, after: int, now: int) -> int | None:
        """See :class:`~flask_idempotent.stores.table.Rows`. ``after`` is the last row that was looked at."""
        args = (UNDATED_SIZE + 1, DEADLINE_SIZE, b"%013d" % now, after, DROPPED)
        rows = self._execute(_COPIES, args).fetchall()
        for row, is_copy, owed in rows:
            if is_copy and not owed:
                self._execute("DELETE FROM records WHERE rowid = ?", (row,))
        return rows[-1][0] if rows else None

    def count(self, now: int) -> int:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._number(_COUNT, {"now": now})

    def owe(self, key: str, owner: bytes, lease_ms: int, expires: int) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._execute(_OWE, (key, owner, lease_ms, expires))

    def settle(self, serial: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._execute("DELETE FROM debts WHERE serial = ?", (serial,)).rowcount > 0

    def debts(self, after_serial: int, limit: int, now: int) -> list[Debt]:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return [Debt(*row) for row in self._execute(_DEBTS, (after_serial, now, limit))]

    def owed_count(self, now: int) -> int:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return self._number("SELECT count(*) FROM debts WHERE expires > ?", (now,))

    def is_owed(self, key: str, now: int) -> bool:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        return bool(self._number("SELECT EXISTS (SELECT 1 FROM debts WHERE key = ? AND expires > ?)", (key, now)))

    def remember(self, name: str, value: bytes) -> None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        self._execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, value))

    def recall(self, name: str) -> bytes | None:
        """See :class:`~flask_idempotent.stores.table.Rows`."""
        row = self._execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return None if row is None else row[0]

    def sweep_more(self, now: int) -> bool:
        """Remove much of what has expired, to make room; whether that was any."""
        return self._sweep(now, ROOM) > 0

    def droppable(self, now: int) -> dict[str, bytes]:
        """The next settled records without debts, each with its mark."""
        found = self._execute(_DROPPABLE, (self._dropped_at, CANDIDATES)).fetchall()
        self._dropped_at = found[-1][1] if len(found) == CANDIDATES else 0
        return {key: mark for key, _, mark in found if not self.is_owed(key, now)}

    def drop_settled(self, marks: Mapping[str, bytes], now: int) -> None:
        """Remove records that are still settled as they were, and without debts."""
        for key, mark in marks.items():
            if not self.is_owed(key, now):
                self._execute(_DROP, (key, mark))

    def _sweep(self, now: int, limit: int) -> int:
        return sum(self._execute(_SWEEP, (settled, now, limit)).rowcount for settled in (0, 1))

    def _sweep_debts(self, now: int) -> None:
        """Look at the next few debts. They have no index by their expiry: most are settled long before."""
        found = self._execute(_OLD_DEBTS, (self._swept_debt, SWEPT)).fetchall()
        self._swept_debt = found[-1][0] if len(found) == SWEPT else 0
        for serial, expires in found:
            if expires <= now:
                self.settle(serial)

    def _number(self, question: str, args: Any) -> int:
        number: int = self._execute(question, args).fetchone()[0]
        return number


def _is_settled(record: bytes) -> bool:
    """Whether a row is anything but a claim."""
    return record[1:2] != State.PENDING.value
