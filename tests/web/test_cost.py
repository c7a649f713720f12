"""What keeps the guard fast: how often Redis is asked, how often a body is read, and what is not imported."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from flask import Flask, request

from flask_idempotent import Idempotency, idempotent

from ..servers.standalone import RedisProcess
from .conftest import Runs, Server, assert_original, assert_replay, redis_config, setting_names

ROOT: Final = Path(__file__).parents[2]
ASKED: Final = ("evalsha", "eval", "fcall", "subscribe", "unsubscribe", "multi", "watch", "wait", "ping", "mget")


class Counted(io.RawIOBase):
    """The input of a request; knows how many bytes were read from it."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        self.read_bytes += len(data)
        return len(data)


def counting(app: Flask) -> list[Counted]:
    """From now on the inputs of an app's requests."""
    inputs: list[Counted] = []
    inner = app.wsgi_app

    def counted(environ: Any, start_response: Any) -> Any:
        inputs.append(Counted(environ["wsgi.input"]))
        return inner(environ | {"wsgi.input": inputs[-1]}, start_response)

    app.wsgi_app = counted  # type: ignore[method-assign]
    return inputs


def questions(client: redis.Redis) -> int:
    """How many commands a server has been sent that a guard could send; scripts count once, whatever they do."""
    stats = client.info("commandstats")
    return sum(stats[f"cmdstat_{name}"]["calls"] for name in ASKED if f"cmdstat_{name}" in stats)


@pytest.mark.redis
@pytest.mark.parametrize(
    ("tier", "first_run", "replay"),
    [
        ({"local_tier": None, "on_outage": "reject"}, 2, 1),
        ({"local_tier": "memory"}, 2, 0),
        ({"local_tier": "shared"}, 2, 0),
    ],
    ids=["Redis alone", "memory", "shared"],
)
def test_a_first_run_asks_redis_twice_and_a_replay_once_or_not_at_all(
    redis_server: RedisProcess,
    bare_app: Callable[..., Flask],
    serve: Callable[..., Server],
    runs: Runs,
    tier: dict[str, Any],
    first_run: int,
    replay: int,
) -> None:
    app = bare_app(**redis_config(redis_server), **setting_names(tier))
    Idempotency(app)
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    assert_original(server.post(key="loads-the-scripts"))
    with redis.Redis(port=redis_server.port, protocol=2) as client:
        before = questions(client)
        first = server.post(key="k", json={"n": 1})
        between = questions(client)
        again = server.post(key="k", json={"n": 1})
        after = questions(client)
    assert_original(first)
    assert_replay(again, first)
    assert (between - before, after - between) == (first_run, replay)


BODIES: Final = {
    "JSON": {"json": {"items": ["x" * 300]}},
    "long JSON": {"json": {"items": ["x" * 300_000]}},
    "a form": {"data": {"name": "x" * 300}},
    "a multipart form": {"files": {"file": ("name", b"x" * 30_000)}, "data": {"name": "x"}},
    "bytes": {"data": b"x" * 300, "headers": {"Content-Type": "application/octet-stream"}},
    "many bytes": {"data": b"x" * 1_000_000, "headers": {"Content-Type": "application/octet-stream"}},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_is_read_once_for_the_fingerprint_and_the_view(
    guarded: Callable[..., Server], runs: Runs, body: dict[str, Any]
) -> None:
    def view() -> Any:
        seen = request.get_json(silent=True), request.form.to_dict(), len(request.files), len(request.get_data())
        return {"run": runs(), "seen": repr(seen)}, 201

    server = guarded(view)
    inputs = counting(server.app)
    first = server.post(key="k", **body)
    assert_original(first)
    assert_replay(server.post(key="k", **body), first)
    assert [each.read_bytes for each in inputs] == [int(first.request.headers["Content-Length"])] * 2


def test_a_request_that_is_not_guarded_is_not_read(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: {"run": 1}, methods=["PATCH"])
    inputs = counting(server.app)
    server.post(key="k", json={"n": 1})
    assert [each.read_bytes for each in inputs] == [0]


def test_the_order_of_decorators_is_looked_at_with_the_first_request_alone(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: {"run": 1})
    assert server.app.url_value_preprocessors[None]
    server.post(key="k")
    assert not server.app.url_value_preprocessors[None]


def modules(code: str) -> set[str]:
    """The modules that a new process has imported after some code."""
    told = "import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"{code}\n{told}"]
    return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


APP: Final = "from flask import Flask; from flask_idempotent import *; app = Flask('shop')"
BLUEPRINT: Final = "app.register_blueprint(create_blueprint(lambda payload: {}))"
REDIS: Final = "app.config['IDEMPOTENCY_CACHE_REDIS_URL'] = 'redis://localhost'"


def test_neither_stripe_nor_redis_is_imported_by_an_app_that_uses_neither() -> None:
    unused = {"stripe", "redis", "requests"}
    assert not unused & modules("import flask_idempotent")
    assert not unused & modules(f"{APP}; Idempotency(app); {BLUEPRINT}")
    assert unused & modules(f"{APP}; {REDIS}; Idempotency(app); {BLUEPRINT}") == {"redis"}
