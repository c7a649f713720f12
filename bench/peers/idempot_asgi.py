"""idempot: its decorator for FastAPI on a Starlette view.

Its decorator for Flask answers every other request with 500: each opens an event loop, and finds a connection that
belongs to the last one's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import idempot
from idempot.contrib.fastapi import idempotent
from starlette.responses import JSONResponse

from tests.servers.standalone import RedisProcess

from .. import asgi
from ..requests import View
from ..subject import Subject


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Over Redis. It does not compare what the requests contain."""
    view = View()
    idempot.configure(backend="redis", redis_url=server.url, default_ttl=600)

    @idempotent
    async def place(request: Any) -> Any:
        return JSONResponse(view(await request.json()))

    async def endpoint(request: Any) -> Any:
        return await place(request=request)

    yield Subject("idempot in Starlette", "ASGI", asgi.sender(asgi.app(endpoint)), view)
