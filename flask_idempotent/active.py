"""What a guarded view can know about its own request while it runs."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Final, cast

from flask import Request, has_request_context, request
from werkzeug.local import LocalProxy

from .core.digest import combine

_ACTIVE: Final = "_idempotency"


@dataclass(slots=True)
class Active:
    """The protection of one running request; see :data:`current_idempotency`.

    :param key: the client's key; None when the request has none and the view runs unprotected.
    :param attempt: 1, or more when an earlier attempt under this key failed or its worker died.
    :param stored: whether the view's outcome is to be stored; see :meth:`do_not_store`.
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

        It covers the app, the route, the caller, the client's key and the content of the request, and shows none of
        them. Hand it to whatever takes an idempotency key of its own, with another purpose for each effect.

        :param purpose: names the effect, such as ``"charge"``.
        :return: 64 hexadecimal digits.
        """
        return combine("derived key 1", self._seed, purpose.encode()).hex()


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


def _find() -> Active:
    active = vars(_request()).get(_ACTIVE) if has_request_context() else None
    if active is None:
        raise RuntimeError("current_idempotency is only there while a view with @idempotent runs")
    return cast(Active, active)


current_idempotency: Active = LocalProxy(_find)  # type: ignore[assignment]
"""The :class:`Active` of the view that is running.

:raises RuntimeError: on use outside of a view with ``@idempotent``.
"""
