"""The debts of a process, by number and by key."""

from __future__ import annotations

from bisect import bisect_right
from itertools import islice
from typing import Final

from .expiry import Expiries
from .tier import Debt

SLACK: Final = 1000
SWEPT: Final = 16  # debts per change


class Ledger:
    """See the debts of :class:`~flask_idempotent.stores.tier.LocalTier`. The caller holds a lock."""

    def __init__(self) -> None:
        self._by_serial: dict[int, Debt] = {}
        self._by_key: dict[str, dict[bytes, Debt]] = {}
        self._order: list[int] = []  # serials as they grew, settled ones among them
        self._last = 0
        self._expiries = Expiries[int](self._expiry_of, lambda: len(self._by_serial))

    def owe(self, key: str, owner: bytes, lease_ms: int, expires: int) -> None:
        """Note a debt, in place of an earlier one of the same key and owner."""
        self._last += 1
        debt = Debt(key, owner, lease_ms, self._last, expires)
        owners = self._by_key.setdefault(key, {})
        if owner in owners:
            del self._by_serial[owners[owner].serial]
        owners[owner] = self._by_serial[debt.serial] = debt
        self._order.append(debt.serial)
        if len(self._order) > 2 * len(self._by_serial) + SLACK:
            self._order = [serial for serial in self._order if serial in self._by_serial]
        self._expiries.add(debt.serial, expires)

    def settle(self, serial: int) -> bool:
        """Remove a debt; whether it was there."""
        debt = self._by_serial.pop(serial, None)
        if debt is None:
            return False
        owners = self._by_key[debt.key]
        del owners[debt.owner]
        if not owners:
            del self._by_key[debt.key]
        return True

    def after(self, serial: int, limit: int, now: int) -> list[Debt]:
        """The debts that have not expired, by serial, from the first one after a given one."""
        later = (self._by_serial.get(each) for each in islice(self._order, bisect_right(self._order, serial), None))
        return list(islice((debt for debt in later if debt is not None and debt.expires > now), limit))

    def count(self, now: int) -> int:
        """How many debts have not expired."""
        while self.sweep(now):
            pass
        return len(self._by_serial)

    def owes(self, key: str, now: int = 0) -> bool:
        """Whether a key has a debt that has not expired."""
        return any(debt.expires > now for debt in self._by_key.get(key, {}).values())

    def sweep(self, now: int) -> bool:
        """Remove a few debts that have expired; whether there may be more."""
        if not self._expiries.due(now):
            return False
        looked_at = 0
        for serial in self._expiries.expired(now, SWEPT):
            looked_at += 1
            if serial is not None:
                self.settle(serial)
        return looked_at == SWEPT

    def _expiry_of(self, serial: int) -> int | None:
        debt = self._by_serial.get(serial)
        return None if debt is None else debt.expires
