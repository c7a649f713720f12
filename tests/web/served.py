"""The app of :mod:`.worker` as gunicorn imports it: ``tests.web.served:served({...}, "DIRECTORY")``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Flask

from .worker import create_app


def served(config: dict[str, Any], directory: str, *, use_first: bool = False) -> Flask:
    """The app, for gunicorn.

    :param use_first: whether it is used before it is served: with ``--preload`` in the master, before the fork.
    """
    app = create_app(config, Path(directory))
    if use_first:
        answers = [app.test_client().post("/", headers={"Idempotency-Key": "master"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
        app.extensions["idempotency"].state_of(app).store.wait("idempotency:{nobody}", 5000)
    return app
