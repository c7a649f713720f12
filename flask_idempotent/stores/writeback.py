"""What a Redis is told that was away, or has lost something: many records at once, none over another's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar, cast

from ..core.record import HEAD_SIZE, UNDATED_SIZE, State, pack_deadline, read_head
from ..core.store import StoreError
from . import scripts
from .failures import store_error
from .questions import Questions, translated
from .wire import Reply, ServerError, pack

PORTION_BYTES: Final = 1 << 20  # of records in one pipeline

Value = TypeVar("Value")


class Restored(IntEnum):
    """What came of writing a record back after an outage."""

    WRITTEN = 1
    PENDING_ELSEWHERE = 2
    DONE_ELSEWHERE = 3


@dataclass(frozen=True, slots=True)
class Copy:
    """A record on its way back to Redis.

    :param key: the storage key.
    :param record: the whole record.
    :param ttl_ms: what is left of its retention.
    :param lease_ms: for a pending one, the lease that it gets.
    """

    key: str
    record: bytes
    ttl_ms: int
    lease_ms: int = 0


class WriteBack(Questions):
    """Brings records back to one Redis, in pipelines."""

    def restore(self, copies: Sequence[Copy]) -> list[Restored | StoreError]:
        """Write back what was decided while Redis was away, in pipelines.

        :return: for each what came of it; an error that is an outage is raised.
        """
        results: list[Restored | StoreError] = []
        for some in _portions(copies, lambda copy: len(copy.record)):
            answers = self._run_all(scripts.RESTORE, [_restoration(copy) for copy in some])
            results += [store_error(one) if isinstance(one, ServerError) else Restored(one) for one in answers]
            _raise_outage(results)
        return results

    def marks(self, keys: Sequence[str]) -> list[Reply]:
        """State, attempt and owner of each record as in its :data:`~flask_idempotent.core.record.MARK`, in a pipeline;
        None where there is none, an error where that cannot be told.
        """
        return self._run_all(scripts.MARKS, [(key, ()) for key in keys])

    def set_absent(self, values: Sequence[tuple[str, bytes, int]]) -> set[str]:
        """Put bytes under keys where nothing stands, in pipelines.

        :param values: key, bytes, and milliseconds for which they are kept.
        :return: the keys where something stood.
        """
        taken: set[str] = set()
        for some in _portions(values, lambda value: len(value[1])):
            with translated:
                commands = [(key, pack("SET", key, value, "PX", ttl_ms, "NX")) for key, value, ttl_ms in some]
                replies = self.nodes.exchange_all(commands)
            _raise_outage([store_error(reply) for reply in replies if isinstance(reply, ServerError)])
            taken.update(key for (key, _), reply in zip(commands, replies, strict=True) if reply is None)
        return taken

    def put_back(self, finished: Sequence[tuple[str, bytes, int]]) -> set[str]:
        """Put finished records where nothing stands, without a script: many of them, on a server that is empty.

        :param finished: key, record, and the milliseconds that are left of its retention.
        :return: the keys where something stood.
        """
        if not finished:
            return set()
        with translated:
            ((seconds, micros),) = cast(Any, self.nodes.exchange(finished[0][0], pack("TIME"), 1))
        now = int(seconds) * 1000 + int(micros) // 1000
        return self.set_absent([(key, _until(record, now + left), left) for key, record, left in finished])


def _portions(values: Sequence[Value], size: Callable[[Value], int]) -> Iterator[list[Value]]:
    """Values in parts that are not too long to be sent within the time that a server has to answer."""
    some: list[Value] = []
    total = 0
    for value in values:
        some.append(value)
        total += size(value)
        if total >= PORTION_BYTES:
            yield some
            some, total = [], 0
    if some:
        yield some


def _raise_outage(results: Sequence[object]) -> None:
    for result in results:
        if isinstance(result, StoreError) and result.outage:
            raise result


def _until(record: bytes, deadline: int) -> bytes:
    """A record with another deadline."""
    return record[:UNDATED_SIZE] + pack_deadline(deadline) + record[HEAD_SIZE:]


def _restoration(copy: Copy) -> tuple[str, tuple[bytes | int, ...]]:
    record, head = copy.record, read_head(copy.record)
    left = {State.PENDING: copy.lease_ms, State.DONE: copy.ttl_ms}.get(head.state, 0)
    parts = (record[:UNDATED_SIZE], left, record[HEAD_SIZE:])
    return copy.key, (head.owner, head.fingerprint, *parts, max(copy.ttl_ms, left, 1))
