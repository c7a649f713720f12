"""What a guarded view, or a function that runs under a key, can know about its own protection."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from flask import Request, has_request_context, request
from werkzeug.local import LocalProxy

from .core.digest import combine

_ACTIVE: Final = "_idempotency"


@dataclass(slots=True)
class Active:
    """The protection of one running request, or call outside of one; see :data:`current_idempotency`.

    :param key: the client's or the caller's key; None when a request has none and the view runs unprotected.
    :param attempt: 1, or more when an earlier attempt under this key failed or its worker died.
    :param stored: whether the outcome is to be stored; see :meth:`do_not_store`.
    """

    key: str | None
    attempt: int
    _seed: bytes
    stored: bool = field(default=True, init=False)

    @classmethod
    def without_key(cls) -> Active:
        """For a request that shares nothing with its retries: its derived keys are its own."""
        return cls(None, 1, secrets.token_bytes(32))

    def do_not_store(self) -> None:
        """Do not keep the outcome of this request: its key is free again when the view has answered.

        For an answer that stands for nothing done, whatever its status. A failure (5xx) is noted all the same.
        """
        self.stored = False

    def derive(self, purpose: str) -> str:
        """A key for another system that is the same for every retry of this request.

        It covers the app, the route, the caller, the client's key and the content of the request (outside of a
        request: the app, the scope, the key and the call), and shows none of them. Hand it to whatever takes an
        idempotency key of its own, with another purpose for each effect.

        :param purpose: names the effect, such as ``"charge"``.
        :return: 64 hexadecimal digits.
        """
        return combine("derived key 1", self._seed, purpose.encode()).hex()


@dataclass(frozen=True, slots=True)
class _Call:
    """A function under a key, and the request in which it was called; None outside of one."""

    active: Active
    caller: Request | None


_call: Final[ContextVar[_Call | None]] = ContextVar("idempotency call", default=None)


def _request() -> Request:
    found: Request = request._get_current_object()  # type: ignore[attr-defined]
    return found


def is_active() -> bool:
    """Whether the current request is already inside a guarded view."""
    return _ACTIVE in vars(_request())


def activate(active: Active) -> None:
    """Let ``current_idempotency`` be ``active`` for the rest of the request, its streamed answer included.

    It hangs on the request object: an application context may outlive many requests, and a middleware may send one
    environ through the app twice.
    """
    vars(_request())[_ACTIVE] = active


@contextmanager
def calling(active: Active) -> Iterator[None]:
    """Let ``current_idempotency`` be ``active`` inside the block, with or without a request around it."""
    token = _call.set(_Call(active, _request() if has_request_context() else None))
    try:
        yield
    finally:
        _call.reset(token)


def _find() -> Active:
    here = _request() if has_request_context() else None
    call = _call.get()
    active: Active | None = None
    if call is not None and call.caller is here:  # a request that a test client makes inside is another
        active = call.active
    elif here is not None:
        active = vars(here).get(_ACTIVE)
    if active is None:
        raise RuntimeError(
            "current_idempotency is only there while a view with @idempotent runs, or a function under idempotency.run"
        )
    return active


current_idempotency: Active = LocalProxy(_find)  # type: ignore[assignment]
"""The :class:`Active` of the view, or of the function given to ``idempotency.run``, that is running.

:raises RuntimeError: on use outside of both.
"""
