"""Functions that run once per key, without a view around them: for tasks, commands and webhooks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any, Final

from flask import Flask

from .active import Active, calling
from .config import Settings, check_run
from .core.digest import combine
from .core.guard import Guard
from .core.key import storage_key
from .core.machine import Replay
from .core.record import StoredResponse
from .core.store import Claim
from .entry import begin, derivation_seed
from .state import AppState

ALL_ARGUMENTS: Final = "all arguments"
_HEADERS: Final = (("Content-Type", "application/json"),)

Call = Callable[[], Any]


class Runner:
    """Runs functions once per key; :meth:`Idempotency.runner` makes it.

    :param find: tells the app whose store is used, and what init_app made for it.
    :param scope: within what the keys are unique; runners with the same scope share their keys.
    :param fingerprint: called with the arguments of a call, returns str or bytes that stand for them; None: nothing
        does. By default all arguments count, and must be JSON.
    :param options: the settings in :data:`flask_idempotent.config.RUN_SETTINGS`, for these calls alone.
    :raises ConfigurationError: an option is unknown or has an impossible value.
    """

    def __init__(
        self,
        find: Callable[[], tuple[Flask, AppState]],
        *,
        scope: str = "",
        fingerprint: Callable[..., bytes | str] | str | None = ALL_ARGUMENTS,
        **options: Any,
    ) -> None:
        self._find = find
        self._scope = scope
        self._fingerprint = fingerprint
        self._options = check_run(options)

    def run(self, key: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` once per key, and give every repetition the stored result.

        ``current_idempotency`` is there while the function runs. When it raises, the exception is passed on, and the
        same call runs again under the key, as it does when its worker has died.

        :param key: names what is to be done once, such as ``"welcome-mail:17"``; any text.
        :param function: a function, method or ``functools.partial``, ``async`` or not. Its module and qualified name
            belong to what makes two calls the same; the object of a method does not.
        :return: the function's result as JSON gives it back, on the first run as well: a tuple becomes a list.
        :raises KeyReused: the key came before with another function or other arguments.
        :raises RequestInProgress: the call runs elsewhere and did not end within ``wait``.
        :raises OutcomeUnknown: its worker died, and ``on_crash`` is "refuse".
        :raises StoreUnavailable: the store cannot be asked, and ``on_outage`` does not let it run.
        :raises RecordUnreadable: what is stored under the key is damaged.
        :raises TypeError: the arguments are not JSON, and nothing ran; or the result is not, and the call has failed.
        :raises ValueError: the key is empty; or the result is over ``max_body``, and the call has failed.
        """
        if not isinstance(key, str) or not key:
            raise ValueError(f"a key must be a non-empty string, not {key!r}")
        mark = self._mark(function, args, kwargs)
        app, state = self._find()
        settings = state.settings.override(self._options)
        digest = combine("run key 1", app.name.encode(), self._scope.encode(), key.encode())
        begun = begin(state.guard, storage_key(settings.key_prefix, digest), mark, settings)
        if isinstance(begun, Replay):
            return json.loads(begun.response.body or b"")
        seed = functools.partial(derivation_seed, digest, mark)
        call = functools.partial(app.ensure_sync(function), *args, **kwargs)
        if isinstance(begun, Claim):
            active = Active(key, begun.attempt, seed, state.store, begun, settings.docs_url)
            return json.loads(_execute(state.guard, begun, active, call, settings))
        return json.loads(_result(Active(key, 1, seed), call, settings.max_body))

    def _mark(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """32 bytes for what makes two calls the same call."""
        while isinstance(function, functools.partial):
            args, kwargs = (*function.args, *args), {**function.keywords, **kwargs}
            function = function.func
        named: Any = function if hasattr(function, "__qualname__") else type(function)
        name = f"{named.__module__}.{named.__qualname__}".encode()
        if self._fingerprint == ALL_ARGUMENTS:
            what, instead = f"the arguments of {named.__qualname__}", "hand in ids, or say what counts by fingerprint="
            return combine("call 1", name, _json([args, kwargs], what, instead, sort=True))
        if not callable(self._fingerprint):
            return combine("call with any arguments 1", name)
        told = self._fingerprint(*args, **kwargs)
        return combine("told call 1", name, told.encode() if isinstance(told, str) else told)


def _execute(guard: Guard, claim: Claim, active: Active, call: Call, settings: Settings) -> bytes:
    """Run the function that holds its key. Whatever happens, the key is settled."""
    try:
        result = _result(active, call, settings.max_body)
    except BaseException:
        guard.fail(claim)
        raise
    if active.stored:
        guard.finish(claim, StoredResponse("200 OK", _HEADERS, result), claim.terms.ttl_ms, settings.compress_over)
    elif active.acted:  # after a step something may have happened
        guard.fail(claim)
    else:
        guard.forget(claim)
    return result


def _result(active: Active, call: Call, limit: int) -> bytes:
    """The function's result as JSON."""
    with calling(active):
        result = _json(call(), "the result", "return an id, say, or None")
    if len(result) > limit:
        raise ValueError(f"the result is too large to be stored: {len(result)} bytes, and max_body is {limit}")
    return result


def _json(value: Any, what: str, instead: str, *, sort: bool = False) -> bytes:
    try:
        return json.dumps(value, sort_keys=sort, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{what} cannot be written as JSON ({error}); {instead}") from error
