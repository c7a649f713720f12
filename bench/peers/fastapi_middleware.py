"""fastapi-idempotency: a middleware around a Starlette app. What is on the index has no store for Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi_idempotency import IdempotencyMiddleware
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from tests.servers.standalone import RedisProcess

from .. import asgi
from ..requests import View
from ..subject import Subject


def subjects(_server: RedisProcess) -> Iterator[Subject]:
    """Over its store in memory."""
    view = View()

    async def endpoint(request: Any) -> Any:
        return JSONResponse(view(await request.json()))

    app = asgi.app(endpoint, Middleware(IdempotencyMiddleware))
    yield Subject("fastapi-idempotency, its memory store", "ASGI", asgi.sender(app), view)
