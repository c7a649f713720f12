"""Plain results by key, for code that runs outside of a request."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any, Final

from flask import Flask, current_app

from .config import duration, milliseconds
from .core.digest import combine
from .core.key import storage_key
from .core.record import RESULT
from .core.store import Store
from .state import AppState, app_state

TTL: Final = 600.0


class IdempotencyCache:
    """JSON results by key, in the app's idempotency store. For tasks and commands that want to remember what they did.

    The keys are hashed and apart from those of requests. It remembers; it does not arbitrate: two workers that both
    find nothing will both go on. Views have ``@idempotent`` for that, and functions ``Idempotency.run``.

    :param app: whose store is used; by default the current app's.
    :param ttl: seconds for which a result is kept, or a timedelta; 600 by default.
    :raises ValueError: the ttl is not a time span.
    """

    def __init__(self, app: Flask | None = None, *, ttl: float | timedelta = TTL) -> None:
        self._app = app
        self._ttl = duration(ttl)

    def get(self, key: str, default: Any = None) -> Any:
        """The result under a key, or ``default`` where there is none. A stored None comes back as None: ask
        :meth:`exists`.

        :raises StoreError: the store cannot be asked.
        """
        store, name = self._find(key)
        raw = store.get(name)
        if raw is None or not raw.startswith(RESULT):
            return default
        return json.loads(raw[len(RESULT) :])

    def set(self, key: str, result: Any, ttl: float | timedelta | None = None) -> None:
        """Keep a result.

        :param result: anything that JSON can say.
        :param ttl: seconds or a timedelta; None for the cache's own.
        :raises TypeError: the result is not JSON.
        :raises ValueError: it is NaN or infinite, or the ttl is no time span.
        :raises StoreError: the store cannot take it.
        """
        store, name = self._find(key)
        raw = RESULT + json.dumps(result, allow_nan=False, separators=(",", ":")).encode()
        store.set(name, raw, milliseconds(self._ttl if ttl is None else duration(ttl)))

    def exists(self, key: str) -> bool:
        """Whether there is a result under a key, whatever it is.

        :raises StoreError: the store cannot be asked.
        """
        store, name = self._find(key)
        return store.get(name) is not None

    def delete(self, key: str) -> bool:
        """Remove a result; whether there was one.

        :raises StoreError: the store cannot be asked.
        """
        store, name = self._find(key)
        return store.delete(name)

    def _find(self, key: str) -> tuple[Store, str]:
        if not isinstance(key, str) or not key:
            raise ValueError(f"a key must be a non-empty string, not {key!r}")
        app = self._app or current_app._get_current_object()  # type: ignore[attr-defined]
        state: AppState = app_state(app)
        digest = combine("cached result 1", app.name.encode(), key.encode())
        return state.store, storage_key(state.settings.key_prefix, digest)
