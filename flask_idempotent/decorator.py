"""``@idempotent``: a view that runs once per key."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar, overload
from weakref import WeakKeyDictionary

from flask import Flask, Request, Response, after_this_request, request
from flask.ctx import RequestContext
from flask.globals import request_ctx
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from . import errors, web
from .active import ACTIVE, Active
from .config import ConfigurationError, Settings, check_route, duration, milliseconds
from .core.guard import Guard, Unprotected
from .core.record import StoredResponse
from .core.store import Claim
from .entry import begin
from .state import AppState, app_state
from .streams import Recorder
from .web import Fate, Readers

log = logging.getLogger("flask_idempotent")

P = ParamSpec("P")
Told = TypeVar("Told")
Call = Callable[[], ResponseReturnValue]
Save = Callable[[Response], bool | Fate] | str | None
Lifetime = Callable[[Response], float | timedelta]

GUARDED: Final = "_idempotent_guarded"  # on the function that the decorator returns
COVERED: Final = "_idempotent_covered"  # on the view below it, which must not be what the app routes to


@overload
def idempotent(view: Callable[P, Any], /) -> Callable[P, ResponseReturnValue]: ...
@overload
def idempotent(
    *,
    key: Callable[[Request], str | None] | None = None,
    fingerprint: Callable[[Request], bytes | str] | None = ...,
    save: Save = None,
    ttl: float | timedelta | Lifetime = ...,
    **options: Any,
) -> Callable[[Callable[P, Any]], Callable[P, ResponseReturnValue]]: ...
def idempotent(view: Callable[P, Any] | None = None, /, **options: Any) -> Any:
    """Run a view once per idempotency key, and answer every repetition of the request with the stored outcome.

    Goes below the route's decorator, bare or with options::

        @app.post("/orders")
        @idempotent(required=True, ttl=86400, wait=5)
        def create_order(): ...

    The options are the settings named in :data:`flask_idempotent.config.ROUTE_SETTINGS`, for this route alone, and:

    :param key: called with the request, returns the key or None; instead of header and form field.
    :param fingerprint: called with the request, returns str or bytes that stand for its content; None: the content
        does not count, whatever comes under the key is the same request.
    :param save: called with the response, tells whether it is kept as the outcome; or ``"stripe-v1"``: keep 5xx and
        402, and forget the other 4xx. By default everything below 500 is kept but refusals (401, 403, 408, 425, 429,
        and any 4xx with Retry-After).
    :param ttl: retention in seconds, as a number, a timedelta, or a function of the response that returns one of these.
    :return: a function with the view's name, documentation and signature.
    :raises ConfigurationError: an option is unknown or has an impossible value.
    """
    route = _Route(**options)
    return route.guard if view is None else route.guard(view)


class _Route:
    """The options of one decorated view."""

    def __init__(
        self,
        *,
        key: Any = None,
        fingerprint: Any = web.WHOLE_REQUEST,
        save: Save = None,
        ttl: Any = None,
        **options: Any,
    ) -> None:
        if isinstance(save, str) and save != web.STRIPE_V1:
            raise ConfigurationError([f"@idempotent(save=...) must be a function or {web.STRIPE_V1!r}, not {save!r}"])
        self.readers = Readers(key, fingerprint)
        self.save = save
        self.lifetime: Lifetime | None = ttl if callable(ttl) else None
        if ttl is not None and self.lifetime is None:
            options["ttl"] = ttl
        self._options = check_route(options)

    def bind(self, view: Callable[..., Any], app: Flask) -> _Bound:
        """Work out what stays the same for all requests to a view of an app."""
        state = app_state(app)
        settings = state.settings.override(self._options)
        return _Bound(self, app.ensure_sync(view) is view, web.site_of(app), state, settings)

    def guard(self, view: Callable[P, Any]) -> Callable[P, ResponseReturnValue]:
        """The decorator proper."""
        if not callable(view):
            raise TypeError(f"@idempotent goes directly above a view function, not {view!r}")
        if GUARDED in getattr(view, "__dict__", {}):
            raise TypeError(f"the view {view.__qualname__} has @idempotent twice; remove one")

        bound_to: WeakKeyDictionary[Flask, _Bound] = WeakKeyDictionary()

        @functools.wraps(view)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> ResponseReturnValue:
            context: RequestContext = request_ctx._get_current_object()  # type: ignore[attr-defined]
            app, here = context.app, context.request
            bound = bound_to.get(app)
            if bound is None:
                bound = bound_to[app] = self.bind(view, app)
            call: Call = functools.partial(view if bound.is_sync else app.ensure_sync(view), *args, **kwargs)
            within = ACTIVE in vars(here)  # another guarded view, which has called this one
            return call() if within else _answer(context, bound, call)

        vars(guarded).pop(COVERED, None)
        setattr(guarded, GUARDED, True)
        setattr(view, COVERED, True)
        return guarded


class _Bound(NamedTuple):
    """A decorated view as it stands in one app.

    :param is_sync: whether the view can be called as it is; what makes an ``async def`` callable belongs to one call.
    :param site: what stays the same for all requests to the app.
    :param settings: the app's, with the route's options.
    """

    route: _Route
    is_sync: bool
    site: web.Site
    state: AppState
    settings: Settings


def _answer(context: RequestContext, bound: _Bound, call: Call) -> ResponseReturnValue:
    """One request to a guarded view."""
    app, here, state, settings = context.app, context.request, bound.state, bound.settings
    guarded = here.method in settings.methods
    incoming = None
    if guarded:
        incoming = web.read(here, app, bound.site, settings, bound.route.readers, state.principal())
    if incoming is None:
        if guarded and settings.required:
            raise errors.KeyMissing(docs_url=settings.docs_url)
        vars(here)[ACTIVE] = Active.without_key()
        return call()
    begun = begin(state.guard, incoming.storage_key, incoming.fingerprint, settings)
    if isinstance(begun, Claim):
        active = Active(incoming.key, begun.attempt, incoming.seed, state.store, begun, settings.docs_url)
        vars(here)[ACTIVE] = active
        return _Execution(context, bound.route, settings, state.guard, begun).run(active, call)
    if isinstance(begun, Unprotected):
        vars(here)[ACTIVE] = Active(incoming.key, 1, incoming.seed)
        after_this_request(web.mark_degraded)
        return call()
    return web.replay(begun.response, app, settings)


class _Execution:
    """One run of a view that holds its key, from the call to the end of its answer."""

    def __init__(self, context: RequestContext, route: _Route, settings: Settings, guard: Guard, claim: Claim) -> None:
        self._app = context.app
        self._hooks = context._after_request_functions
        self._route = route
        self._settings = settings
        self._guard = guard
        self._claim = claim

    def run(self, active: Active, call: Call) -> Response:
        """Run the view. Whatever happens, the key is settled."""
        try:
            response = self._respond(call)
            self._settle(response, active)
        except BaseException:
            self._guard.fail(self._claim)
            raise
        return response

    def _settle(self, response: Response, active: Active) -> None:
        save, lifetime = self._route.save, self._route.lifetime
        fate = self._told(web.fate, response, save) if save is not None else None
        fate = fate or web.fate(response, None)
        if fate is Fate.KEEP and active.stored and not active.inconclusive:
            ttl_ms = self._told(_ttl_ms, lifetime, response) if lifetime is not None else None
            self._keep(response, ttl_ms or self._claim.terms.ttl_ms)
            return
        response.headers.remove(self._settings.replay_header)  # as _keep does
        if fate is Fate.FAIL or active.acted:  # after a step something may have happened, whatever the status
            self._guard.fail(self._claim)
        else:
            self._guard.forget(self._claim)

    def _told(self, ask: Callable[..., Told], *args: Any) -> Told | None:
        """What the host's own function says about a finished view; None when it fails: the answer still counts."""
        try:
            return ask(*args)
        except Exception:  # the host's code; the view's work is done
            log.exception("idempotency: save= or ttl= failed; the route's outcome is kept as by default")
            return None

    def _respond(self, call: Call) -> Response:
        """The view's answer, or that of the app's own error handlers; what none of them takes is raised."""
        hooks, earlier = self._hooks, len(self._hooks)
        try:
            answer: Any = call()
        except Exception as error:  # noqa: BLE001 - Flask's own dispatch does the same, and raises what nobody handles
            answer = self._app.handle_user_exception(error)
        if isinstance(answer, HTTPException):
            answer = answer.get_response(request.environ)
        response = self._app.make_response(answer)
        own, hooks[earlier:] = hooks[earlier:], []
        for hook in own:  # what the view has added by after_this_request is part of its answer, on a replay as well
            response = self._app.ensure_sync(hook)(response)
        return response

    def _keep(self, response: Response, ttl_ms: int) -> None:
        """Store the outcome: at once, or for a stream when its last chunk has passed."""
        head = (response.status, web.stored_headers(response, self._settings), ttl_ms)
        chunks, plain = response.response, type(response).iter_encoded is Response.iter_encoded
        if plain and type(chunks) is list and len(chunks) == 1 and type(chunks[0]) is bytes:  # as nearly all are
            kept = self._store(*head, chunks[0])
        elif response.is_streamed or response.direct_passthrough:
            store, failed = functools.partial(self._store, *head), functools.partial(self._guard.fail, self._claim)
            limit, length = self._settings.max_body, response.content_length
            patience = self._settings.max_runtime
            response.response = Recorder(chunks, limit, length, store, failed, patience)
            return
        else:
            kept = self._store(*head, response.get_data())
        if not kept:
            web.mark_unstored(response)

    def _store(self, status: str, headers: tuple[tuple[str, str], ...], ttl_ms: int, body: bytes | None) -> bool:
        """Store the outcome; whether that was possible.

        :param body: None when it is too long to be kept.
        """
        kept = None if body is None or len(body) > self._settings.max_body else body
        stored = StoredResponse(status, headers, kept)
        return self._guard.finish(self._claim, stored, ttl_ms, self._settings.compress_over)


def _ttl_ms(lifetime: Lifetime, response: Response) -> int:
    return milliseconds(duration(lifetime(response)))
