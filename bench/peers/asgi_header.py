"""asgi-idempotency-header: a middleware around a Starlette app."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import RedisBackend
from redis.asyncio import Redis
from starlette.middleware import Middleware
from starlette.responses import JSONResponse

from tests.servers.standalone import RedisProcess

from .. import asgi
from ..requests import View
from ..subject import Subject


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Over Redis. It does not compare what the requests contain."""
    view = View()

    async def endpoint(request: Any) -> Any:
        return JSONResponse(view(await request.json()))

    backend = RedisBackend(redis=Redis(port=server.port, protocol=2))
    app = asgi.app(endpoint, Middleware(IdempotencyHeaderMiddleware, backend=backend))
    yield Subject("asgi-idempotency-header", "ASGI", asgi.sender(app), view)
