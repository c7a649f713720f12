"""Prints what ``@idempotent`` adds to a view, in multiples of one plain redis-py GET.

The WSGI app is called directly with a prebuilt environ; the cost is the guarded view's time less the same view's
without a guard. The measurements take turns, call by call, so that a change of the machine's speed meets all alike.
"""

from __future__ import annotations

import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from flask import Flask

from flask_idempotent import Idempotency, idempotent
from tests.servers.standalone import RedisProcess

ROUNDS = 3000
WARM_UP = 200
BODY = json.dumps({"items": ["x" * 180]}).encode()  # 200 bytes in
ANSWER = {"order": "y" * 280}  # 300 bytes out

Call = Callable[[int], object]


def app_with(view_decorator: Callable[[Any], Any], **settings: Any) -> Flask:
    """An app with one view at ``/``, set up with the given ``IDEMPOTENCY_*`` settings."""
    app = Flask("bench")
    app.config.update({f"IDEMPOTENCY_{name}": value for name, value in settings.items()})
    if settings:
        Idempotency(app)
    app.post("/")(view_decorator(lambda: ANSWER))
    return app


def caller(app: Flask, key: Callable[[int], str]) -> Call:
    """Calls the app with the key of round ``n``."""
    base = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/", "SCRIPT_NAME": "", "QUERY_STRING": "", "SERVER_NAME": "localhost",
        "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": False, "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(BODY)),
    }  # fmt: skip

    def call(n: int) -> object:
        environ = base | {"wsgi.input": io.BytesIO(BODY), "HTTP_IDEMPOTENCY_KEY": key(n)}
        return b"".join(app(environ, lambda *_: None))

    return call


def measure(calls: dict[str, Call]) -> dict[str, list[float]]:
    """Microseconds of each call in each round, in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for n in range(-WARM_UP, ROUNDS):
        for name, call in calls.items():
            began = time.perf_counter_ns()
            call(n)
            if n >= 0:
                times[name].append((time.perf_counter_ns() - began) / 1000)
    gc.enable()
    return times


def main() -> None:
    """Start a Redis, measure, print the table."""
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory)).start()
        try:
            run(server)
        finally:
            server.stop()


def run(server: RedisProcess) -> None:
    """Measure the three stores against a running Redis and print the table."""
    client = redis.Redis(port=server.port, protocol=2)
    client.set("floor", b"z" * 400)
    stores: dict[str, dict[str, Any]] = {
        "SimpleCache": {"CACHE_TYPE": "SimpleCache"},
        "Redis alone": {"CACHE_REDIS_URL": server.url, "LOCAL_TIER": None, "ON_OUTAGE": "reject"},
        "memory before Redis": {"CACHE_REDIS_URL": server.url, "LOCAL_TIER": "memory"},
    }
    calls: dict[str, Call] = {
        "one GET": lambda _: client.get("floor"),
        "bare": caller(app_with(lambda view: view), str),
    }
    for name, settings in stores.items():
        app = app_with(idempotent, **settings)
        calls[f"{name}: first run"] = caller(app, lambda n: f"key-{n}")
        calls[f"{name}: replay"] = caller(app, lambda _: "the-same-key")
    times = measure(calls)
    floor, bare = statistics.median(times["one GET"]), statistics.median(times["bare"])
    print(f"one redis-py GET: {floor:.0f} us; the bare view: {bare:.0f} us; {ROUNDS} rounds in turns\n")
    print("| what the guard adds | median us | x GET | p99 us |\n| --- | ---: | ---: | ---: |")
    for name, values in times.items():
        if ":" in name:
            added = statistics.median(values) - bare
            p99 = statistics.quantiles(values, n=100)[98] - bare
            print(f"| {name} | {added:.0f} | {added / floor:.2f} | {p99:.0f} |")


if __name__ == "__main__":
    main()
