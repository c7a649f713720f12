"""The extension object: one for any number of apps."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

from flask import Flask, current_app, has_app_context
from flask_caching import Cache

from . import commands, health, script, signals
from .config import ConfigurationError, read_settings
from .core.guard import Guard
from .decorator import COVERED
from .forms import idempotency_field
from .runner import Runner
from .state import EXTENSION, AppState
from .web import Principal, flask_login_user

log = logging.getLogger("flask_idempotent")
Loader = TypeVar("Loader", bound=Callable[[], Principal])


class Idempotency:
    """Sets up idempotent views on Flask apps.

    ``Idempotency(app)``, or ``idempotency = Idempotency()`` and ``idempotency.init_app(app)`` in an app factory, for
    as many apps as there are. On an app the object is ``app.extensions["idempotency"]``.

    :param app: an app to set up at once.
    :param cache: an existing ``flask_caching.Cache`` whose type and connection settings are used. Its data is not
        touched.
    """

    def __init__(self, app: Flask | None = None, *, cache: Cache | None = None) -> None:
        self._cache = cache
        self._loader: Callable[[], Principal] | None = None
        self._scope_is_logged = False
        self._states: WeakKeyDictionary[Flask, AppState] = WeakKeyDictionary()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask, *, cache: Cache | None = None) -> None:
        """Read the app's settings and set the app up. Opens no connection: the app starts while its Redis is down.

        :param app: its ``config`` must be complete; later changes have no effect.
        :param cache: as for the class, for this app alone.
        :raises ConfigurationError: with every mistake in the settings.
        :raises RuntimeError: the app is already set up.
        """
        from .stores import lent_backend, open_store, own_backend  # what is loaded here is only needed with an app
        from .stores.source import THRESHOLD, read_source

        if EXTENSION in app.extensions:
            raise RuntimeError(
                f"Idempotency is already set up on the app {app.name!r}; call init_app once per app, "
                "and not at all after Idempotency(app)"
            )
        settings, mistakes = read_settings(app.config)
        cache = cache or self._cache
        source, wrong = ({}, []) if cache is not None else read_source(app.config, os.environ)
        if mistakes or wrong:
            raise ConfigurationError([*mistakes, *wrong])
        backend = lent_backend(app, cache) if cache is not None else own_backend(app, source)
        observe = partial(signals.report, ref(app))
        store = open_store(backend, settings, source.get("CACHE_THRESHOLD", THRESHOLD), observe)
        self._states[app] = AppState(settings, store, Guard(store, observe), self._principal)
        app.extensions[EXTENSION] = self
        app.jinja_env.globals.setdefault("idempotency_field", partial(idempotency_field, settings.form_field))
        script.install(app, settings)
        _OrderCheck(app)
        commands.register(app)

    def principal_loader(self, loader: Loader) -> Loader:
        """Decorator: the function that tells who makes the current request.

        Keys are then separate per caller. Without a loader the user of Flask-Login counts; without either, the
        Authorization header becomes part of what makes two requests the same.

        :param loader: called without arguments inside the request; returns a str, int, bytes, UUID, a tuple of these
            (tenant and user, say), or None when it cannot tell.
        """
        self._loader = loader
        return loader

    def state_of(self, app: Flask) -> AppState:
        """What init_app made for an app.

        :raises RuntimeError: this object is not set up on it.
        """
        try:
            return self._states[app]
        except KeyError:
            raise RuntimeError(f"this Idempotency is not set up on the app {app.name!r}; call init_app(app)") from None

    def run(self, key: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``function(*args, **kwargs)`` once per key, outside of a guarded view: in a task, a command, a webhook.

        The settings are the app's, and all runs of an app share one scope of keys; for others see :meth:`runner`. The
        app is the current one, or the only one.

        :return: the result, stored as JSON: what :meth:`Runner.run` says about results and errors holds here.
        """
        return self.runner().run(key, function, *args, **kwargs)

    def runner(self, *, app: Flask | None = None, **options: Any) -> Runner:
        """What runs functions with settings, or in a scope of keys, of their own::

            mails = idempotency.runner(scope="mails", ttl=86400)
            mails.run(f"welcome:{user.id}", send_welcome, user.id)

        It can be made before ``init_app``.

        :param app: as for :meth:`health`.
        :param options: as for :class:`Runner`.
        :raises ConfigurationError: an option is unknown or has an impossible value.
        """
        return Runner(lambda: self._app_and_state(app), **options)

    def health(self, app: Flask | None = None) -> dict[str, Any]:
        """How the store is doing: ``status`` (healthy, degraded or unhealthy), ``message``, ``stats``, ``since`` (when
        an outage began, ISO 8601 in UTC, or None), ``waiting`` (number of records to be written to Redis when it is
        back), ``breaker`` (``"open"``, ``"closed"`` or None) and ``warnings`` (what may lose records; the servers are
        asked for it once a minute).

        :param app: the app in question; may be left out in an app context, and where there is only one.
        """
        return health.check(self._state(app))

    def stats(self, app: Flask | None = None) -> dict[str, Any]:
        """``isRedisAvailable`` (bool), ``inMemoryCacheSize`` (number of records in this process) and ``cacheType``
        (``"redis"`` or ``"memory"``: which decides at this moment).

        :param app: as for :meth:`health`.
        """
        return health.stats(self._state(app).store.report())

    def close(self, app: Flask | None = None) -> None:
        """Give back an app's connections and threads, at the end of a test, say. The app can go on and opens them anew.

        :param app: as for :meth:`health`.
        """
        self._state(app).guard.close()

    def _state(self, app: Flask | None) -> AppState:
        return self._app_and_state(app)[1]

    def _app_and_state(self, app: Flask | None) -> tuple[Flask, AppState]:
        if app is None and has_app_context():
            app = current_app._get_current_object()  # type: ignore[attr-defined]
        if app is None and len(self._states) == 1:
            (app,) = self._states
        if app is None:
            raise RuntimeError("name the app, or call inside an app context: this Idempotency serves several or none")
        return app, self.state_of(app)

    def _principal(self) -> Principal:
        if not self._scope_is_logged:
            self._log_scope()
        if self._loader is not None:
            return self._loader()
        return flask_login_user(current_app) if "flask_login" in sys.modules else None

    def _log_scope(self) -> None:
        """Once, with the first guarded request: by then a loader has had its chance to be set."""
        self._scope_is_logged = True
        if self._loader is not None:
            log.info("idempotency: keys are separate per caller, by the principal_loader")
        elif hasattr(current_app, "login_manager"):
            log.info("idempotency: keys are separate per caller, by Flask-Login's user")
        else:
            log.log(
                logging.WARNING
                if current_app.secret_key
                else logging.INFO,  # with sessions, users may be known by a cookie
                "idempotency: nothing tells callers apart but their Authorization header; an app that knows its users "
                "by a cookie alone must set @idempotency.principal_loader",
            )


class _OrderCheck:
    """Finds views that were decorated after the app had taken them: they would run without protection.

    Flask takes no more routes once it has a request, so the first one tells; where nothing is wrong, no later one pays.
    """

    def __init__(self, app: Flask) -> None:
        self._views = app.view_functions
        self._hooks = app.url_value_preprocessors
        app.url_value_preprocessor(self)

    def __call__(self, endpoint: str | None, _values: Any) -> None:
        wrong = {name for name, view in self._views.items() if self._is_wrong(view)}
        if endpoint in wrong:
            raise ConfigurationError(
                [
                    f"@idempotent stands above the route decorator of the view {endpoint!r}; "
                    "put it directly above the function, below @app.post(...)"
                ]
            )
        if not wrong:  # in a new list: Flask is going through the old one
            self._hooks[None] = [hook for hook in self._hooks[None] if hook is not self]

    def _is_wrong(self, view: Callable[..., Any]) -> bool:
        """Unless the app has another route to the same function, with the guard: then this one is bare on purpose."""
        if COVERED not in getattr(view, "__dict__", ()):
            return False
        return not any(inner is view for routed in self._views.values() for inner in _wrapped_by(routed))


def _wrapped_by(view: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    while (view := getattr(view, "__wrapped__", None)) is not None:  # type: ignore[assignment]
        yield view
