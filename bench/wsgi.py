"""Calls WSGI apps directly, with a prebuilt environ."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, request

from .requests import BodyOf, Send, View, body, key

_ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "POST", "PATH_INFO": "/", "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_NAME": "localhost",
    "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "HTTP_HOST": "localhost", "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr, "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": False,
    "wsgi.run_once": False, "CONTENT_TYPE": "application/json",
}  # fmt: skip


def _start_response(_status: str, _headers: list[tuple[str, str]], _error: Any = None) -> None: ...


def sender(app: Callable[[dict[str, Any], Any], Iterable[bytes]], body_of: BodyOf = body) -> Send:
    """Sends the request to an app.

    :param body_of: JSON, always of one length.
    """
    base = _ENVIRON | {"CONTENT_LENGTH": str(len(body_of(key(0))))}

    def send(key: str) -> bytes:
        environ = base | {"wsgi.input": io.BytesIO(body_of(key)), "HTTP_IDEMPOTENCY_KEY": key}
        return b"".join(app(environ, _start_response))

    return send


def bare(view: View, body_of: BodyOf = body) -> Send:
    """The view without any guard."""
    app = Flask("bare")
    app.post("/")(lambda: view(request.get_json()))
    return sender(app, body_of)
