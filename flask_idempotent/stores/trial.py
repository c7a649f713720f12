"""A record's whole life, tried on a store."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from ..core.record import FINGERPRINT_SIZE, OWNER_SIZE, Head, State, StoredResponse, pack_payload
from ..core.store import Claim, Claimed, Found, OnOutage, Store, StoreError, StoreFull, Terms
from .findings import Finding, Level

TTL_MS: Final = 10_000
Step = tuple[str, Callable[[], Any], Callable[[Any], bool]]


def scratch_key(prefix: str) -> str:
    """A key under an app's prefix that nothing else has."""
    return f"{prefix}{{doctor-{secrets.token_hex(8)}}}"


def try_out(check: str, store: Store, prefix: str) -> Finding:
    """Claim, refuse a duplicate, renew, complete, read, set and delete a record of its own.

    :param prefix: what all keys of the app begin with.
    """
    key = scratch_key(prefix)
    began = time.monotonic()
    trouble = _trouble(store, key)
    took = (time.monotonic() - began) * 1000
    if trouble is not None:
        return Finding(check, Level.FAILURE, trouble)
    return Finding(check, Level.OK, f"a record was claimed, renewed, completed, read and deleted in {took:.1f} ms")


def _trouble(store: Store, key: str) -> str | None:
    try:
        for name, act, is_right in _life(store, key):
            try:
                answer = act()
            except StoreFull as error:
                return f"{name} failed, {error}; raise maxmemory, or shorten IDEMPOTENCY_TTL"
            except StoreError as error:
                return f"{name} failed: {error}"
            if not is_right(answer):
                return f"{name} had a wrong answer; something else changes keys that begin like those of this app"
        return None
    finally:
        with suppress(StoreError):
            store.delete(key)


def _life(store: Store, key: str) -> Iterator[Step]:
    """The calls of a record's life, each with what its answer must be."""
    terms = Terms(lease_ms=TTL_MS, ttl_ms=TTL_MS, resume=False, on_outage=OnOutage.REJECT)
    claim = Claim(key, secrets.token_bytes(OWNER_SIZE), bytes(FINGERPRINT_SIZE), terms)
    duplicate = claim._replace(owner=secrets.token_bytes(OWNER_SIZE))
    head = Head(State.DONE, 1, claim.owner, claim.fingerprint, 0)
    payload = pack_payload(head.pack(), StoredResponse("204 NO CONTENT", (), b""), TTL_MS)
    yield "claim", lambda: store.claim(claim), lambda answer: answer == Claimed(1)
    yield "a duplicate's claim", lambda: store.claim(duplicate), lambda answer: isinstance(answer, Found)
    yield "renew", lambda: store.renew([claim]), lambda answer: answer == [True]
    yield "complete", lambda: store.complete(claim, payload, TTL_MS), lambda answer: answer is True
    yield "peek", lambda: store.peek(key), lambda answer: answer is not None and answer.record.endswith(payload)
    yield "set", lambda: store.set(key, payload, TTL_MS), lambda _answer: True
    yield "get", lambda: store.get(key), lambda answer: answer == payload
    yield "delete", lambda: store.delete(key), lambda answer: answer is True
