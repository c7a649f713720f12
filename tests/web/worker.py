"""One worker of a real deployment: an app in a process of its own, for the tests that kill and freeze it.

    python -m tests.web.worker '{"IDEMPOTENCY_CACHE_REDIS_URL": "redis://..."}' DIRECTORY

prints its port. ``POST /`` notes in DIRECTORY that it began and ended, and waits while there is a file named hold.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from flask import Flask, request
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_idempotent import Idempotency, current_idempotency, idempotent


class _Silent(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        pass


def create_app(config: dict[str, Any], directory: Path) -> Flask:
    app = Flask("shop")
    app.config.update(config)
    Idempotency(app)

    def note(word: str) -> None:
        with (directory / word).open("a") as file:
            file.write(f"{os.getpid()} {current_idempotency.attempt} {current_idempotency.derive('charge')}\n")

    @app.post("/")
    @idempotent
    def work() -> Any:
        note("began")
        deadline = time.monotonic() + 30
        while (directory / "hold").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        note("ended")
        return {
            "worker": os.getpid(),
            "attempt": current_idempotency.attempt,
            "said": request.get_data(as_text=True),
        }, 201

    return app


if __name__ == "__main__":
    application = create_app(json.loads(sys.argv[1]), Path(sys.argv[2]))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Silent)
    print(server.server_port, flush=True)
    server.serve_forever()
