"""The app under test, as gunicorn serves it: one guarded view that writes down each of its runs.

``FAULTS_APP`` in the environment holds JSON: ``settings`` (IDEMPOTENCY_* without the prefix), ``ledger`` and ``host``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from flask import Flask, Response, g, has_request_context, request

from flask_idempotent import Idempotency, idempotent

from .evidence import Lines

VARIABLE: Final = "FAULTS_APP"
GATE_SECONDS: Final = 30.0
LONGEST_PAD: Final = 3000  # so that some outcomes are compressed


def _work(ledger: Lines, host: str) -> Callable[[], Response]:
    """The view: what it does can be told from outside, whatever becomes of the store."""

    def work() -> Response:
        """Write down the start, work, write down the end, and answer with what no other run answers."""
        run, key = secrets.token_hex(8), request.headers["Idempotency-Key"]
        ledger.add({"key": key, "run": run, "host": host, "pid": os.getpid(), "start": time.monotonic()})
        time.sleep(float(request.headers.get("Work", 0)))
        _await_gate(request.headers.get("Gate"))
        status = 500 if "Fail" in request.headers else 201
        ledger.add({"run": run, "end": time.monotonic(), "status": status})
        return Response(_body(key, run), status, {"Content-Type": "application/json", "Run": run})

    return work


def _await_gate(gate: str | None) -> None:
    """Work until somebody makes a file."""
    deadline = time.monotonic() + GATE_SECONDS
    while gate and not Path(gate).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def _body(key: str, run: str) -> str:
    pad = int(hashlib.sha256(run.encode()).hexdigest(), 16)
    return json.dumps({"key": key, "run": run, "pad": f"{pad:064x}" * (pad % LONGEST_PAD // 64)})


def _note_time() -> None:
    g.began = time.monotonic()


def _say_who(response: Response) -> Response:
    """Which worker answered and how long it took, on replays and refusals as well."""
    response.headers["Worker"] = str(os.getpid())
    response.headers["Took"] = f"{time.monotonic() - g.began:.6f}"
    return response


def _state(idempotency: Idempotency) -> Callable[[], dict[str, Any]]:
    """A view that tells how this worker is."""
    return lambda: {"pid": os.getpid(), "time": time.time(), **idempotency.health()}


class _Whose(logging.Filter):
    """Puts the key of the request and the time into a log record."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.monotonic = time.monotonic()
        record.key = request.headers.get("Idempotency-Key", "") if has_request_context() else ""
        return True


def _log() -> None:
    """Log what the extension warns of, on the clock of the campaign."""
    handler = logging.StreamHandler()
    handler.addFilter(_Whose())
    handler.setFormatter(logging.Formatter("%(monotonic).3f %(process)d %(threadName)s %(key)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def create() -> Flask:
    """The app that the environment describes."""
    _log()
    given = json.loads(os.environ[VARIABLE])
    app = Flask(__name__)
    app.config.update({f"IDEMPOTENCY_{name}": value for name, value in given["settings"].items()})
    idempotency = Idempotency(app)
    work = _work(Lines(Path(given["ledger"])), given["host"])
    app.add_url_rule("/work", "work", idempotent(required=True)(work), methods=["POST"])
    app.add_url_rule("/state", "state", _state(idempotency))
    app.before_request(_note_time)
    app.after_request(_say_who)
    return app
