"""One worker of a real deployment: an app in a process of its own, for the tests that kill and freeze it.

    python -m tests.web.worker '{"IDEMPOTENCY_CACHE_REDIS_URL": "redis://..."}' DIRECTORY

prints its port. ``POST /`` notes in DIRECTORY that it began and ended, and waits while there is a file named ``hold``,
or ``hold-N`` for the attempt N. A file named ``status-N`` has the status that the attempt answers with. ``/careful`` is
the same with ``on_crash="refuse"``, and ``/brief`` with a ``max_runtime`` of half a second.
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

    def work() -> Any:
        attempt = current_idempotency.attempt
        held, status = [directory / "hold", directory / f"hold-{attempt}"], directory / f"status-{attempt}"
        note("began")
        deadline = time.monotonic() + 30
        while any(file.exists() for file in held) and time.monotonic() < deadline:
            time.sleep(0.005)
        note("ended")
        answer = {"worker": os.getpid(), "attempt": attempt, "said": request.get_data(as_text=True)}
        return answer, int(status.read_text()) if status.exists() else 201

    app.post("/", endpoint="work")(idempotent(work))
    app.post("/careful", endpoint="careful")(idempotent(on_crash="refuse")(work))
    app.post("/brief", endpoint="brief")(idempotent(max_runtime=0.5)(work))
    return app


if __name__ == "__main__":
    application = create_app(json.loads(sys.argv[1]), Path(sys.argv[2]))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Silent)
    print(server.server_port, flush=True)
    server.serve_forever()
