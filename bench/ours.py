"""Our own guard over each of its stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flask import Flask, request

from flask_idempotent import ConfigurationError, Idempotency, idempotent
from tests.servers.standalone import RedisProcess

from . import wsgi
from .requests import View
from .subject import Subject


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Every store that this version has, with the ratios to one GET that it should keep within."""
    redis = {"CACHE_REDIS_URL": server.url}
    stores: list[tuple[str, dict[str, Any], float, float]] = [
        ("SimpleCache alone", {"CACHE_TYPE": "SimpleCache"}, 0.4, 0.2),
        ("memory tier before Redis", redis | {"LOCAL_TIER": "memory"}, 2.3, 0.3),
        ("shared tier before Redis", redis | {"LOCAL_TIER": "shared"}, 2.7, 0.4),
        ("Redis alone", redis | {"LOCAL_TIER": None, "ON_OUTAGE": "reject"}, 2.2, 1.0),
    ]
    for name, settings, first, replay in stores:
        view = View()
        app = guarded(view, name, settings)
        if app is not None:
            yield Subject(f"ours: {name}", "WSGI", wsgi.sender(app), view, first, replay)


def guarded(view: View, name: str, settings: dict[str, Any]) -> Flask | None:
    """An app with the guarded view at ``/``; None where this version does not know the settings.

    :param name: of the app, which is part of every key.
    :param settings: by their names without ``IDEMPOTENCY_``.
    """
    app = Flask(name)
    app.config.update({f"IDEMPOTENCY_{setting}": value for setting, value in settings.items()})
    try:
        Idempotency(app)
    except ConfigurationError:
        if settings.get("LOCAL_TIER") == "shared":
            return None
        raise
    app.post("/")(idempotent(lambda: view(request.get_json())))
    return app
