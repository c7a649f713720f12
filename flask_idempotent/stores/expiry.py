"""What has expired, found without looking at all the rest."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=str | int)

MOVED: Final = 4  # entries per addition, while a heap is cleared of what is out of date
SLACK: Final = 1000


class Expiries(Generic[Key]):
    """Keys by their expiry. An entry counts while its key still has the expiry with which it was added.

    Entries that are out of date are skipped when their time comes. When they are the majority, the others are moved to
    a new heap, a few with each addition, so that no addition takes long. A heap without its last entry is still a heap.

    :param expiry_of: when a key expires now, or None where it is gone.
    :param size: how many keys there are.
    """

    def __init__(self, expiry_of: Callable[[Key], int | None], size: Callable[[], int]) -> None:
        self._expiry_of = expiry_of
        self._size = size
        self._heap: list[tuple[int, Key]] = []
        self._old: list[tuple[int, Key]] = []

    def add(self, key: Key, expires: int) -> None:
        """Note when a key expires, in any unit of time. O(log n)."""
        heapq.heappush(self._heap, (expires, key))
        if self._old:
            self._move()
        elif len(self._heap) > 2 * self._size() + SLACK:
            self._heap, self._old = [], self._heap

    def due(self, now: int) -> bool:
        """Whether the time of any entry has come."""
        heap, old = self._heap, self._old
        return bool((heap and heap[0][0] <= now) or (old and old[0][0] <= now))

    def expired(self, now: int, limit: int) -> Iterator[Key | None]:
        """Take out entries whose time has come: their keys, or None for those that are out of date.

        :param limit: how many at most.
        """
        for _ in range(limit):
            heap = self._old if self._old and (not self._heap or self._old[0] < self._heap[0]) else self._heap
            if not heap or heap[0][0] > now:
                return
            expires, key = heapq.heappop(heap)
            yield key if self._expiry_of(key) == expires else None

    def _move(self) -> None:
        for _ in range(min(MOVED, len(self._old))):
            entry = self._old.pop()
            if self._expiry_of(entry[1]) == entry[0]:
                heapq.heappush(self._heap, entry)
