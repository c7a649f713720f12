"""A record in words, for an operator: no body, no fingerprint and no token in them."""

from __future__ import annotations

from .core.record import (
    RESULT,
    Head,
    NewerRecord,
    State,
    UnreadableRecord,
    is_compressed,
    read_head,
    read_response,
)
from .core.steps import read_journal
from .core.store import Found


def in_words(found: Found) -> dict[str, str]:
    """What a record says, by ``state`` and, for a request's, ``attempt``."""
    record = found.record
    if record.startswith(RESULT):
        return {"state": f"a result of IdempotencyCache, {len(record) - len(RESULT)} bytes of JSON"}
    try:
        head = read_head(record)
        return {"state": _state(head, found), "attempt": str(head.attempt)}
    except NewerRecord as error:
        return {"state": f"not known here: {error}"}
    except UnreadableRecord as error:
        return {"state": f"no record, or a damaged one, of {len(record)} bytes: {error}"}


def steps_in_words(journal: bytes) -> str:
    """How far the steps of a request have come."""
    entries = read_journal(journal).values()
    done = sum(entry.result is not None for entry in entries)
    begun = len(entries) - done
    return f"{done} done, {begun} begun and not ended" + (" (one that is at_most_once: see resolve)" if begun else "")


def _state(head: Head, found: Found) -> str:
    left = (head.deadline - found.now_ms) / 1000
    if head.state is State.PENDING and left > 0:
        return f"running: its lease lasts for another {left:.1f} s"
    if head.state is State.PENDING:
        return f"interrupted: its worker has not renewed the lease, which ended {-left:.1f} s ago"
    if head.state is State.FAILED:
        return f"failed {-left:.1f} s ago: the same request may run again"
    return f"done: {_response(found.record)}"


def _response(record: bytes) -> str:
    response = read_response(record)
    headers = "1 header" if len(response.headers) == 1 else f"{len(response.headers)} headers"
    body = (
        "the body was too large and is left out" if response.body is None else f"a body of {len(response.body)} bytes"
    )
    return f"{response.status}, {headers}, {body}{', stored compressed' if is_compressed(record) else ''}"
