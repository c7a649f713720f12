"""What the extension knows about one app, and where the other modules find it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from flask import Flask

from .config import Settings
from .core.guard import Guard
from .core.store import Store
from .web import Principal

EXTENSION = "idempotency"


class AppState(NamedTuple):
    """Everything that init_app made for one app.

    :param settings: read once, frozen.
    :param store: where the records are.
    :param guard: drives requests through the store.
    :param principal: tells who makes the current request; None when nobody can tell.
    """

    settings: Settings
    store: Store
    guard: Guard
    principal: Callable[[], Principal]


def app_state(app: Flask) -> AppState:
    """The state of an app.

    :raises RuntimeError: the extension is not set up on it.
    """
    extension = app.extensions.get(EXTENSION)
    if extension is None:
        raise RuntimeError(
            f"Idempotency is not set up on the app {app.name!r}; call Idempotency(app) or idempotency.init_app(app)"
        )
    state: AppState = extension.state_of(app)
    return state
