"""Stripe's own idempotency rules (v1) for POSTs: one table of keys, each step atomic.

| a POST with the key arrives while the key is | with the same request | with another request |
| --- | --- | --- |
| unknown, or older than 24 h | Started | Started |
| running | InUse | Mismatch |
| settled with an answer that is kept | Replay | Mismatch |

A settled answer is kept when the endpoint began to execute: successes, 402 and every 5xx. Other 4xx answers
are refusals that came before any effect; they free the key at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

KEY_LIFETIME = 24 * 60 * 60  # seconds
MAX_KEY_LENGTH = 255


@dataclass(frozen=True)
class Answer:
    """What a POST was answered: the HTTP status, the JSON text and the id of the request that made it."""

    status: int
    body: str
    request_id: str

    @property
    def kept(self) -> bool:
        """Whether Stripe stores this answer under the idempotency key."""
        return self.status < 400 or self.status == 402 or self.status >= 500


@dataclass(frozen=True)
class PostRequest:
    """What must be equal in two POSTs under one key: the path and the form's pairs in any order."""

    path: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Started:
    """The key is the caller's: execute, then settle it."""


@dataclass(frozen=True)
class Replay:
    """The key has an answer: give it again."""

    answer: Answer


@dataclass(frozen=True)
class InUse:
    """The same request is running under the key."""


@dataclass(frozen=True)
class Mismatch:
    """The key belongs to another request; ``same_path`` tells other parameters from another endpoint."""

    same_path: bool


Verdict: TypeAlias = "Started | Replay | InUse | Mismatch"


@dataclass
class _Entry:
    request: PostRequest
    started_at: float
    answer: Answer | None = None


class KeyTable:
    """The idempotency keys of one account. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Start empty; ``clock`` returns the time in seconds since the epoch."""
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def begin(self, key: str, request: PostRequest) -> Verdict:
        """Claim ``key`` for ``request``, or say why it cannot be had; after Started, call :meth:`settle`."""
        with self._lock:
            self._drop_expired()
            entry = self._entries.get(key)
            if entry is None:
                self._entries[key] = _Entry(request, self._clock())
                return Started()
            if entry.request != request:
                return Mismatch(same_path=entry.request.path == request.path)
            return InUse() if entry.answer is None else Replay(entry.answer)

    def settle(self, key: str, answer: Answer | None) -> None:
        """End the execution that holds ``key``: keep its answer, or free the key when none is to be kept."""
        with self._lock:
            if answer is not None and answer.kept:
                self._entries[key].answer = answer
            else:
                del self._entries[key]

    def _drop_expired(self) -> None:
        horizon = self._clock() - KEY_LIFETIME
        for key, entry in list(self._entries.items()):
            if entry.answer is not None and entry.started_at <= horizon:
                del self._entries[key]
