"""What a tier of this process or of this host needs of the place where its rows are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .tier import Debt, MayDrop

Answer = TypeVar("Answer")


class Rows(Protocol):
    """What a transaction sees, and may change. Instants are milliseconds by the store's clock.

    Where a transaction cannot be undone, ``put`` is the one that may fail, and fails before it changes anything.
    """

    def find(self, key: str, now: int) -> tuple[bytes | None, int]:
        """The live record under a key and when it expires, or None and 0."""

    def put(self, key: str, record: bytes, expires: int, now: int) -> None:
        """Write a record. :raises StoreFull: the key is new and there is no room for it."""

    def put_new(self, key: str, record: bytes, expires: int, now: int) -> bool:
        """Write a record where nothing is live, in one step. False where that cannot be done so.

        :raises StoreFull: there is no room for it.
        """

    def replace(self, key: str, start: bytes, record: bytes, expires: int, now: int) -> bool:
        """Write a record in place of a live claim, in one step. False where there is none, or that cannot be done so.

        :param start: what the claim begins with, up to its deadline.
        """

    def remove(self, key: str) -> None:
        """Take a record out, live or not."""

    def page(self, before: int, limit: int, now: int) -> tuple[list[tuple[str, bytes, int]], int | None]:
        """Live records with their keys and expiries, the latest keys first, and where to go on from; at first 0."""

    def drop_copies(self, after: int, now: int) -> int | None:
        """Remove a part of the copies, as a :class:`~flask_idempotent.stores.tier.LocalTier` is told to drop them.

        :param after: where to begin; at first 0.
        :return: where to go on from, or None when all is done.
        """

    def count(self, now: int) -> int:
        """The number of live records."""

    def owe(self, key: str, owner: bytes, lease_ms: int, expires: int) -> None:
        """Note a debt, in place of an earlier one of the same key and owner."""

    def settle(self, serial: int) -> bool:
        """Remove a debt; whether it was there."""

    def debts(self, after_serial: int, limit: int, now: int) -> list[Debt]:
        """The debts that have not expired, by serial, from the first one after ``after_serial``."""

    def owed_count(self, now: int) -> int:
        """How many debts there are."""

    def is_owed(self, key: str, now: int) -> bool:
        """Whether there is a debt for a key."""

    def remember(self, name: str, value: bytes) -> None:
        """Keep a note for good."""

    def recall(self, name: str) -> bytes | None:
        """The note of a name, or None."""


class Table(Protocol):
    """A place for rows.

    :param may_drop: says which settled records may be given up to make room.
    """

    may_drop: MayDrop

    def run(self, work: Callable[[Rows], Answer], *, writes: bool = True, settles: bool = False) -> Answer:
        """Do some work on the rows in one transaction: nobody sees half of it, and an error undoes it.

        :param work: may be called more than once; only the last call counts.
        :param writes: False where it may well find that there is nothing to write.
        :param settles: whether it says what became of something that has happened. That is worth a longer wait: where
            it is not written, a finished request may run again.
        """

    def at_once(self, work: Callable[..., Answer], *args: Any) -> Answer | None:
        """Do some work outside of a transaction, so that each step of it stands by itself. It costs half as much.

        :param work: called as ``work(rows, *args)``; of one step or two.
        :return: None where it could not be done now, and was not.
        """

    def close(self) -> None:
        """Give back what is open. The table can be used again."""
