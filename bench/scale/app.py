"""The app that gunicorn serves for the benchmark: ``bench.scale.app:create(...)``."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from flask import Flask, request

from flask_idempotent import Idempotency, idempotent

from ..requests import ANSWER


def create(settings: dict[str, Any] | None) -> Flask:
    """An app with a view at ``/`` that answers at once, and one at ``/slow`` that takes its time.

    :param settings: of the guard, by their names without ``IDEMPOTENCY_``; None: no guard.
    """
    app = Flask("scale")
    guard: Any = lambda view: view  # noqa: E731
    if settings is not None:
        app.config.update({f"IDEMPOTENCY_{name}": value for name, value in settings.items()})
        Idempotency(app)
        guard = idempotent

    @app.post("/")
    @guard
    def quick() -> dict[str, Any]:
        return ANSWER if request.get_json()["items"] else {}

    @app.post("/slow")
    @guard
    def slow() -> dict[str, Any]:
        time.sleep(0.2)
        return {"run": uuid4().hex}

    return app
