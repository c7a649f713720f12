"""Calls ASGI apps directly, with a prebuilt scope, on one event loop for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

from .requests import Send, View, body, key

Receive = Callable[[], Any]

_SCOPE: dict[str, Any] = {
    "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
    "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "",
    "client": ("127.0.0.1", 50000), "server": ("localhost", 80),
}  # fmt: skip
_HEADERS = [
    (b"host", b"localhost"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(body(key(0)))).encode()),
]


@cache
def loop() -> asyncio.AbstractEventLoop:
    """The event loop, to which the peers' connections are bound as well."""
    return asyncio.new_event_loop()


def sender(app: Any) -> Send:
    """Sends the request to an app."""

    async def respond(key: str) -> bytes:
        scope = {**_SCOPE, "headers": [*_HEADERS, (b"idempotency-key", key.encode())]}
        messages = [{"type": "http.request", "body": body(key), "more_body": False}]
        sent: list[bytes] = []
        waits = asyncio.Event()

        async def receive() -> Any:
            if not messages:  # a server's receive() returns again only when the client goes away
                await waits.wait()
            return messages.pop()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))

        await app(scope, receive, send)
        return b"".join(sent)

    return lambda key: loop().run_until_complete(respond(key))


def app(endpoint: Any, middleware: Any = None) -> Any:
    """A Starlette app with the endpoint at ``/``."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    return Starlette(routes=[Route("/", endpoint, methods=["POST"])], middleware=[middleware] if middleware else [])


def bare(view: View) -> Send:
    """The view without any guard."""
    from starlette.responses import JSONResponse

    async def endpoint(request: Any) -> Any:
        return JSONResponse(view(await request.json()))

    return sender(app(endpoint))
