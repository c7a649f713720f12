"""aws-lambda-powertools: the function behind a Flask view, decorated with ``idempotent_function``.

Without its payload validation: over Redis it stores no hash of the payload with the result, and refuses every replay.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
from aws_lambda_powertools.utilities.idempotency.persistence.redis import CachePersistenceLayer
from flask import Flask, request
from redis import Redis

from tests.servers.standalone import RedisProcess

from .. import wsgi
from ..requests import View
from ..subject import Subject

LEASE_MS = 29_000


class _Context:
    """What stands for the Lambda context: without the time that is left, a dead worker would block its key for ever."""

    def get_remaining_time_in_millis(self) -> int:
        return LEASE_MS


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Over Redis, and with its own cache in the process before it."""
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="aws_lambda_powertools")
    for name, cached in (("aws-lambda-powertools in Flask", False), ("the same, local cache", True)):
        view = View()
        yield Subject(name, "WSGI", wsgi.sender(_app(name, view, server, cached)), view)


def _app(name: str, view: View, server: RedisProcess, cached: bool) -> Flask:
    config = IdempotencyConfig(
        event_key_jmespath="key", raise_on_no_idempotency_key=True,
        expires_after_seconds=600, use_local_cache=cached, local_cache_max_items=100_000,
    )  # fmt: skip
    config.register_lambda_context(_Context())
    layer = CachePersistenceLayer(client=Redis(port=server.port, protocol=2, decode_responses=True))

    @idempotent_function(data_keyword_argument="order", persistence_store=layer, config=config, key_prefix=name)
    def place(order: dict[str, Any]) -> dict[str, str]:
        return view(order["body"])

    app = Flask(name)

    @app.post("/")
    def create() -> Any:
        return place(order={"key": request.headers["Idempotency-Key"], "body": request.get_json()})

    return app
