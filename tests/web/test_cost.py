"""What keeps the guard fast: how often Redis is asked, how often a body is read, and what is not imported."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from flask import Flask, Request, request
from flask.json.provider import DefaultJSONProvider

from flask_idempotent import Idempotency, idempotent
from flask_idempotent.core import fingerprint

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


@pytest.fixture
def parsings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Flask parses from now on, in a process that has seen no body before."""
    monkeypatch.setattr(fingerprint, "_known", {})
    parsed: list[Any] = []

    def count(text: str | bytes, **options: Any) -> Any:
        parsed.append(text)
        return json.JSONDecoder().decode(text if isinstance(text, str) else text.decode())

    monkeypatch.setattr("flask.json.provider.json.loads", count)
    return parsed


ORDER: Final = {"items": [{"sku": "tea", "qty": 2}], "gift": True, "note": None}


def test_json_is_parsed_once_for_the_fingerprint_and_the_view(
    guarded: Callable[..., Server], parsings: list[Any]
) -> None:
    server = guarded(lambda: {"seen": [request.get_json(), request.json, request.get_json(silent=True, force=True)]})
    answer = server.post(key="k", json=ORDER)
    assert b"tea" in answer.content
    assert not [text for text in parsings if b"tea" in text]


def test_a_view_reads_the_body_after_its_json(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: {"seen": [request.get_json(), request.get_data(as_text=True)]})
    sent = json.dumps(ORDER)
    answer = server.post(key="k", data=sent, headers={"Content-Type": "application/json"})
    assert answer.json()["seen"] == [ORDER, sent]


class Tagged(DefaultJSONProvider):
    """Reads documents as one app may want them."""

    def loads(self, s: str | bytes, **options: Any) -> Any:
        return {"read by": "the app's own", **super().loads(s, **options)}


def test_an_app_with_a_parser_of_its_own_gets_what_that_makes_of_it(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: request.get_json())
    server.app.json = Tagged(server.app)
    assert server.post(key="k", json=ORDER).content.count(b"the app's own") == 1


class OwnRequest(Request):
    """A request that reads its JSON itself."""

    def get_json(self, *args: Any, **options: Any) -> Any:
        return {"read by": "the class", **super().get_json(*args, **options)}


def test_a_request_class_with_a_parser_of_its_own_is_asked(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: request.get_json())
    server.app.request_class = OwnRequest
    assert b"the class" in server.post(key="k", json=ORDER).content


class Envelope(Request):
    """A request whose data come in an envelope."""

    def get_data(self, *args: Any, **options: Any) -> Any:
        return json.dumps({"opened": json.loads(super().get_data(*args, **options))}).encode()


def test_a_request_class_that_unwraps_its_data_gives_the_view_what_is_inside(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: request.get_json())
    server.app.request_class = Envelope
    for key in ("a", "b"):
        assert server.post(key=key, json=ORDER).json() == {"opened": ORDER}


def test_a_parser_that_is_set_on_the_provider_is_asked(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: request.get_json())
    server.app.json.loads = lambda s, **options: {"read by": "another"}  # type: ignore[method-assign]
    assert server.post(key="k", json=ORDER).json() == {"read by": "another"}


class Loud:
    """A parser that a view may set."""

    @staticmethod
    def loads(text: str | bytes) -> Any:
        return {"loud": len(text)}


def changed() -> Any:
    """What a decorator below the guard may do to a body."""
    request.stream = io.BytesIO(b'{"changed": 1}')  # type: ignore[misc]
    return request.get_json()


ORDERS_OF_CALLS: Final[dict[str, Callable[[], Any]]] = {
    "JSON, then the stream": lambda: [request.get_json(), request.stream.read().decode()],
    "the stream, then JSON": lambda: [request.stream.read().decode(), request.get_json(silent=True)],
    "data that is not kept, then JSON": lambda: [
        request.get_data(cache=False).decode(), request.get_json(silent=True)
    ],
    "JSON that is not kept, twice": lambda: [request.get_json(cache=False), request.get_json(silent=True)],
    "JSON that is changed, and once more": lambda: [
        request.get_json().update(a=1), request.get_json(), json.loads(request.get_data())
    ],
    "another stream": changed,
    "a piece of the stream, then JSON": lambda: [request.stream.read(5).decode(), request.get_json(silent=True)],
    "data, then JSON": lambda: [request.get_data(as_text=True), request.get_json()],
    "JSON, then data that are not kept": lambda: [request.get_json(), request.get_data(cache=False).decode()],
    "JSON of a copy": lambda: [copy.copy(request._get_current_object()).get_json()],  # type: ignore[attr-defined]
    "JSON twice": lambda: [request.get_json() is request.get_json(), request.json is request.get_json(silent=True)],
    "another parser, then JSON": lambda: [setattr(request, "json_module", Loud), request.get_json()],
    "silently, then aloud": lambda: [request.get_json(silent=True), request.get_json()],
    "JSON, then a form": lambda: [request.get_json(), request.form.to_dict(), request.stream.read().decode()],
    "a form, then JSON": lambda: [request.form.to_dict(), request.get_json(silent=True)],
    "forced JSON and its values": lambda: [request.get_json(force=True), request.values.to_dict()],
}  # fmt: skip


@pytest.mark.parametrize("view", ORDERS_OF_CALLS.values(), ids=ORDERS_OF_CALLS.keys())
def test_a_guarded_view_reads_what_the_bare_view_reads(
    bare_app: Callable[..., Flask], guarded: Callable[..., Server], view: Callable[[], Any]
) -> None:
    app = bare_app()
    app.post("/")(lambda: {"read": view()})
    sent, headers = json.dumps(ORDER), {"Content-Type": "application/json"}
    bare = app.test_client().post("/", data=sent, headers=headers).get_json()
    assert guarded(lambda: {"read": view()}).post(key="k", data=sent, headers=headers).json() == bare


def test_what_a_hook_has_parsed_and_changed_stays_as_it_is(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: request.get_json())

    @server.app.before_request
    def add() -> None:
        request.get_json()["added"] = True

    assert server.post(key="k", json=ORDER).json() == {**ORDER, "added": True}


def test_a_fraction_reaches_the_view_as_a_number(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: {"seen": repr(request.get_json())})
    assert server.post(key="k", json={"price": 1.10}).json() == {"seen": "{'price': 1.1}"}


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
