"""Everything one sandbox knows: sessions, idempotency keys, waiting faults, and what was answered so far."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Literal, TypeAlias, cast

from flask import current_app

from .faults import FaultQueue
from .idempotency import KeyTable
from .sessions import Sessions

Kind: TypeAlias = Literal["executed", "replayed", "mismatched", "in_use", "refused", "lost"]
KINDS: tuple[Kind, ...] = ("executed", "replayed", "mismatched", "in_use", "refused", "lost")

EXTENSION = "stripe_sandbox"  # under this name an Account sits in app.extensions


class Account:
    """The state behind one sandbox. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float], token: Callable[[int], str]) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        """
        self.clock = clock
        self.token = token
        self.sessions = Sessions(clock, token)
        self.keys = KeyTable(clock)
        self.faults = FaultQueue()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._counts: Counter[Kind] = Counter()

    def count(self, kind: Kind) -> None:
        """Note that one more POST ended like this."""
        with self._lock:
            self._counts[kind] += 1

    def counts(self) -> dict[Kind, int]:
        """Return how many POSTs to the API ended in which way.

        ``executed`` reached an outcome that is kept, errors 402 and 500 included; ``replayed`` got a kept
        outcome again; ``mismatched`` and ``in_use`` met a key that was taken; ``refused`` was turned away
        before it had any effect. ``lost`` counts, beside those, the answers that were dropped.
        """
        with self._lock:
            return {kind: self._counts[kind] for kind in KINDS}

    def pause(self, seconds: float) -> None:
        """Hang for so many seconds, or until the sandbox closes."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """End every pause at once, now and later."""
        self._closing.set()


def current_account() -> Account:
    """Return the account of the app that handles the current request."""
    return cast(Account, current_app.extensions[EXTENSION])
