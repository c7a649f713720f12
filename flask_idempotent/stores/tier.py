"""What a store offers in addition when it stands before Redis."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from ..core.store import Claim, Claimed, Found, Store


class Debt(NamedTuple):
    """What Redis may not know about one request, or about a plain value.

    :param key: the storage key.
    :param owner: the token of the request; empty for a plain value.
    :param lease_ms: the lease that its claim gets when it is written back.
    :param serial: a number that grows with each debt that is noted. A change makes a new debt, so that it is not
        settled together with an older one.
    :param expires: when nothing of it can be left anywhere, in milliseconds by the store's clock.
    """

    key: str
    owner: bytes
    lease_ms: int
    serial: int
    expires: int


class Copies(NamedTuple):
    """A part of the records.

    :param records: the key, the bytes and the milliseconds they have left.
    :param before: where to go on from; None when there are no others.
    """

    records: list[tuple[str, bytes, int]]
    before: int | None


MayDrop = Callable[[Mapping[str, bytes]], Collection[str]]


class LocalTier(Store, Protocol):
    """A store that can stand before Redis.

    With ``owed``, a debt is noted in the same transaction as the change, if that succeeds: what Redis may not know yet
    is known here, whoever dies. It expires with the retention of what was changed, or its lease if that is longer.
    """

    @property
    def keeps(self) -> bool:
        """Whether records are kept here at all."""

    @property
    def keeps_early(self) -> bool:
        """Whether it is worth while to complete early."""

    def claim(self, claim: Claim, *, owed: bool = False) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def renew(self, claims: Sequence[Claim], *, owed: bool = False) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def complete_early(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """Complete before Redis has agreed, where it is sure to: half of the lease is left, at least. False where it is
        not, or this would take long, and nothing was done.
        """

    def fail(self, claim: Claim, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def forget(self, claim: Claim, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def begin_step(self, claim: Claim, name: bytes, intent: bytes, *, owed: bool = False) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. What is owed is the journal as a whole."""

    def end_step(self, claim: Claim, result: bytes, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. What is owed is the journal as a whole."""

    def now(self) -> int:
        """The store's clock, milliseconds since the epoch."""

    def set(self, key: str, value: bytes, ttl_ms: int, *, owed: bool = False) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""

    def delete(self, key: str, *, owed: bool = False) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. A deletion is owed for a day."""

    def owe(self, claim: Claim, ttl_ms: int = 0) -> None:
        """Note a debt alone.

        :param ttl_ms: for how long the state of the claim counts, where that is longer than its own terms.
        """

    def debts(self, after_serial: int = 0, limit: int = 500) -> list[Debt]:
        """What is owed, in the order in which it was noted.

        :param after_serial: where to go on from.
        """

    def settle(self, debt: Debt) -> bool:
        """Redis has it now. False where the state has changed since and is owed anew, or the debt was settled."""

    def owed_count(self) -> int:
        """How many debts there are."""

    def is_owed(self, key: str) -> bool:
        """Whether anything is owed for a key."""

    def take(self, key: str) -> tuple[bytes, int] | None:
        """The live bytes under a key and the milliseconds they have left, for copying them elsewhere."""

    def copies(self, before: int = 0, limit: int = 500) -> Copies:
        """The live records, the latest keys first.

        :param before: where to go on from; 0 begins anew. What is written meanwhile may or may not be among them.
        :param limit: how many are looked at.
        """

    def drop(self, key: str, record: bytes) -> bool:
        """Forget a record that Redis has forgotten, unless it is owed or has changed since it was read."""

    def drop_copies(self) -> None:
        """Forget what Redis knows as well: every settled record, and every claim whose lease is over, without debts."""

    def remember(self, name: str, value: bytes) -> None:
        """Keep a note beside the records, for good."""

    def recall(self, name: str) -> bytes | None:
        """The note of a name, or None."""

    def take_turn(self, name: str, owner: bytes, turn_ms: int) -> bool:
        """Be the only one who does something, until ``turn_ms`` from now; taking it again prolongs or, by 0, ends it.

        :param name: of what is done.
        :param owner: 16 bytes that name who does it.
        :return: False while it is another's turn.
        """

    def allow_dropping(self, may_drop: MayDrop) -> None:
        """When full, give up settled records without debts that ``may_drop`` names.

        Without it, and where there are none, a full store refuses new keys.

        :param may_drop: given some records' marks by their keys, tells which of them Redis has as they are.
        """
