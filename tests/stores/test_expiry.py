"""What has expired is found, whatever else there is, and no addition takes long."""

from __future__ import annotations

import random

from flask_idempotent.stores.expiry import MOVED, SLACK, Expiries


class Table:
    """Keys with their expiry, as the owners of a queue have them."""

    def __init__(self) -> None:
        self.expires: dict[str, int] = {}
        self.asked = 0
        self.queue = Expiries[str](self.expiry_of, self.expires.__len__)

    def expiry_of(self, key: str) -> int | None:
        self.asked += 1
        return self.expires.get(key)

    def put(self, key: str, expires: int) -> None:
        self.expires[key] = expires
        self.queue.add(key, expires)

    def sweep(self, now: int) -> set[str]:
        found = set()
        while entries := list(self.queue.expired(now, 7)):
            found |= {key for key in entries if key is not None}
            for key in found & self.expires.keys():
                del self.expires[key]
        return found

    def entries(self) -> int:
        return len(self.queue._heap) + len(self.queue._old)


def test_a_key_is_found_at_its_expiry_and_not_before_nor_twice() -> None:
    table = Table()
    table.put("a", 10)
    table.put("b", 20)
    assert table.sweep(9) == set()
    assert table.sweep(10) == {"a"}
    assert table.sweep(25) == {"b"}
    assert table.sweep(1000) == set()


def test_an_expiry_that_was_changed_counts_as_it_was_changed_last() -> None:
    table = Table()
    for expires in (10, 50, 30):
        table.put("a", expires)
    assert table.sweep(29) == set()
    assert table.sweep(30) == {"a"}
    table.put("b", 40)
    del table.expires["b"]
    assert table.sweep(100) == set()


def test_random_changes_are_followed_also_while_the_heap_is_cleared() -> None:
    chance = random.Random(1)
    table, now, cleared = Table(), 0, 0
    for _ in range(60_000):
        now += chance.random() < 0.05
        key = str(chance.randrange(300))
        if chance.random() < 0.2:
            table.expires.pop(key, None)
        else:
            table.put(key, now + chance.randrange(1, 5000))
        cleared += bool(table.queue._old)
        if chance.random() < 0.01:
            due = {key for key, expires in table.expires.items() if expires <= now}
            assert table.sweep(now) == due
        assert table.entries() <= 4 * len(table.expires) + 4 * SLACK
    assert cleared > 100


def test_no_addition_looks_at_more_than_a_few_entries() -> None:
    table, worst = Table(), 0
    for number in range(20_000):
        before = table.asked
        table.put("the same", number + 1_000_000)
        worst = max(worst, table.asked - before)
    assert worst == MOVED
