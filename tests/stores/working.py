"""Workers at work: what tests of the tiers do with them, and look for."""

from __future__ import annotations

from collections.abc import Callable

import redis

from flask_idempotent.core.machine import Replay, judge
from flask_idempotent.core.record import State, read_head
from flask_idempotent.core.store import Claimed, Found

from .conftest import Worker
from .making import KEY, ME, TTL, claim_of, eventually, payload_of

Workers = Callable[..., Worker]


def key_of(number: int) -> str:
    return f"idempotency:{{{number}}}"


def finish(worker: Worker, owner: bytes = ME, key: str = KEY, ttl_ms: int = TTL) -> None:
    claim = claim_of(owner, key)
    assert isinstance(worker.store.claim(claim), Claimed)
    assert worker.store.complete(claim, payload_of(claim, owner), ttl_ms)


def answered_by(worker: Worker, key: str = KEY) -> bytes:
    """Whose outcome a duplicate gets from a worker."""
    duplicate = claim_of(b"d" * 16, key)
    found = worker.store.claim(duplicate)
    assert isinstance(found, Found)
    verdict = judge(found, duplicate)
    assert isinstance(verdict, Replay)
    assert verdict.response.body is not None
    return verdict.response.body


def cut_off(worker: Worker) -> None:
    """Cut the way to Redis, and let the worker notice."""
    worker.link.cut()
    eventually(lambda: worker.store.report().outage)
    assert worker.store.report().outage


def recovered(worker: Worker) -> None:
    """Open the way to Redis, and wait until it has all that was owed to it."""
    worker.link.open()
    eventually(lambda: worker.store.report().redis_available and not worker.store.report().waiting)


def head_in(server: redis.Redis, key: str = KEY) -> tuple[State, bytes] | None:
    raw = server.get(key)
    return None if raw is None else (read_head(raw).state, read_head(raw).owner)
