"""What a guarded view, or a function that runs under a key, can know about its own protection."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from flask import Request, has_request_context, request
from werkzeug.local import LocalProxy

from .core.digest import combine
from .core.steps import StepLost, Steps, StepUnknown
from .core.store import Claim, Store
from .errors import OutcomeUnknown, RequestInProgress

# Where the Active of a request is found, for the rest of it, its streamed answer included: in the request object's own
# names. An application context may outlive many requests, and a middleware may send one environ through the app twice.
ACTIVE: Final = "_idempotency"


class Active:
    """The protection of one running request, or call outside of one; see :data:`current_idempotency`.

    :param key: the client's or the caller's key; None when a request has none and the view runs unprotected.
    :param attempt: 1, or more when an earlier attempt under this key failed or its worker died.
    :param seed: gives what derived keys are made of; most requests derive nothing.
    :param store: where the steps are noted; None where nothing protects the request.
    :param claim: the request's hold on its key, likewise.
    :param docs_url: for the errors.
    :ivar stored: whether the outcome is to be stored; see :meth:`do_not_store`.
    :ivar inconclusive: whether a step could not tell what has been done; then the answer is no outcome.
    """

    __slots__ = ("_claim", "_docs_url", "_seed", "_steps", "_store", "attempt", "inconclusive", "key", "stored")

    def __init__(
        self,
        key: str | None,
        attempt: int,
        seed: Callable[[], bytes],
        store: Store | None = None,
        claim: Claim | None = None,
        docs_url: str | None = None,
    ) -> None:
        self.key = key
        self.attempt = attempt
        self.stored = True
        self.inconclusive = False
        self._seed = seed
        self._store = store
        self._claim = claim
        self._docs_url = docs_url
        self._steps: Steps | None = None

    @classmethod
    def without_key(cls) -> Active:
        """For a request that shares nothing with its retries: its derived keys are its own."""
        seed = secrets.token_bytes(32)
        return cls(None, 1, lambda: seed)

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
        return combine("derived key 1", self._seed(), purpose.encode()).hex()

    def step(
        self,
        name: str,
        function: Callable[..., Any],
        /,
        *args: Any,
        key_arg: str | None = None,
        at_most_once: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call ``function(*args, **kwargs)`` and note its result under the request's key, so that a retry after a
        crash or a failure gets the result instead of another call.

        A step whose result was not noted when the worker died runs again, unless ``at_most_once``. Without a key the
        function is just called.

        :param name: names the step within the view, such as ``"charge"``.
        :param function: does one thing; its result must be JSON.
        :param args: JSON as well, and the same on every attempt.
        :param key_arg: name of a keyword argument by which the function gets a key for the service it calls: the same
            on every attempt, as from :meth:`derive`.
        :param at_most_once: for an effect that has no key of its own: it is not tried again when an earlier attempt may
            have done it.
        :return: the result as JSON gives it back, on the first call as well: a tuple becomes a list.
        :raises OutcomeUnknown: ``at_most_once``, and nobody knows whether an earlier attempt did it.
        :raises RequestInProgress: another worker has taken the key over; this one must not go on.
        :raises StepError: the name is there twice, the arguments are not those of an earlier attempt, or something is
            not JSON.
        :raises StoreError: the step cannot be noted, so it was not begun; or its result cannot, and a retry repeats it.
        """
        if self._steps is None:
            self._steps = Steps(self._store, self._claim, self.derive)
        try:
            return self._steps.run(name, function, args, kwargs, key_arg=key_arg, at_most_once=at_most_once)
        except StepUnknown as error:
            self.inconclusive = True
            detail = f"The step {name!r} may have been done before, and must not be done twice."
            raise OutcomeUnknown(detail, docs_url=self._docs_url) from error
        except StepLost as error:
            self.inconclusive = True
            raise RequestInProgress(retry_after=1, docs_url=self._docs_url) from error

    @property
    def acted(self) -> bool:
        """Whether a step has begun: then something may have happened, whatever the answer says."""
        return self._steps is not None


class _Call(NamedTuple):
    """A function under a key, and the request in which it was called; None outside of one."""

    active: Active
    caller: Request | None


_call: Final[ContextVar[_Call | None]] = ContextVar("idempotency call", default=None)


def _request() -> Request:
    found: Request = request._get_current_object()  # type: ignore[attr-defined]
    return found


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
        active = vars(here).get(ACTIVE)
    if active is None:
        raise RuntimeError(
            "current_idempotency is only there while a view with @idempotent runs, or a function under idempotency.run"
        )
    return active


current_idempotency: Active = LocalProxy(_find)  # type: ignore[assignment]
"""The :class:`Active` of the view, or of the function given to ``idempotency.run``, that is running.

:raises RuntimeError: on use outside of both.
"""
