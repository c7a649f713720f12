"""The errors: problem details for programs, pages for people, and nothing in them of anybody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask import Blueprint, Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from flask_idempotent import (
    Idempotency,
    IdempotencyError,
    KeyInvalid,
    KeyMissing,
    KeyReused,
    OutcomeUnknown,
    RecordUnreadable,
    RequestInProgress,
    StoreUnavailable,
    idempotent,
)

from .conftest import (
    HEADER,
    REPLAYED,
    TITLES,
    Gate,
    Runs,
    Server,
    assert_original,
    assert_problem,
    eventually,
    redis_config,
    setting_names,
)

DOCS = "https://docs.example/idempotency"
RETRYABLE = {"request-in-progress", "store-unavailable"}
CLASSES: dict[str, type[IdempotencyError]] = {
    "key-missing": KeyMissing,
    "key-invalid": KeyInvalid,
    "key-reused": KeyReused,
    "request-in-progress": RequestInProgress,
    "outcome-unknown": OutcomeUnknown,
    "store-unavailable": StoreUnavailable,
    "record-unreadable": RecordUnreadable,
}
HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
FOREIGN = ("tell-tale-key", "tell-tale-body", "tell-tale-token", "tell-tale-answer", "tell-tale-user")


class Provocation:
    """Serves a view, and brings each of the errors about over HTTP."""

    def __init__(
        self, code: str, server: Server, view_runs: Gate, pool: ThreadPoolExecutor, spoil: Callable[[str], None]
    ):
        self._code, self._server, self._gate, self._pool, self._spoil = code, server, view_runs, pool, spoil

    def __call__(self, **headers: str) -> requests.Response:
        """Answer with the error; the first request, under the same key, was somebody else's."""
        post = self._server.post
        theirs = {"json": {"secret": "tell-tale-body"}, "headers": {"Authorization": "tell-tale-token"}}
        if self._code == "key-missing":
            return post("/", headers=headers)
        if self._code == "key-invalid":
            return self._server.raw(f"{HEADER}: tell-tale-key, x", *(f"{n}: {v}" for n, v in headers.items()))
        if self._code == "key-reused":
            post("/", key="tell-tale-key", **theirs)
            return post("/", key="tell-tale-key", headers=headers, json={"mine": 1})
        if self._code == "request-in-progress":
            self._pool.submit(post, "/?slow=1", key="tell-tale-key", **theirs)
            self._gate.await_view()
            mine = {"json": theirs["json"], "headers": {**theirs["headers"], **headers}}
            return post("/?slow=1", key="tell-tale-key", **mine)
        if self._code != "store-unavailable":
            post("/", key="tell-tale-key", **theirs)
        self._spoil(self._code)
        return post("/", key="tell-tale-key", json=theirs["json"], headers={**theirs["headers"], **headers})


@pytest.fixture
def provoke(
    redis_server: Any, new_redis: Any, bare_app: Callable[..., Flask], serve: Callable[..., Server], gate: Gate
) -> Iterator[Callable[..., Provocation]]:
    pool = ThreadPoolExecutor(2)

    def make(code: str, **settings: Any) -> Provocation:
        redis = new_redis().start() if code == "store-unavailable" else redis_server
        more = {
            "local_tier": None,
            "on_outage": "reject",
            "on_crash": "refuse",
            "required": True,
            "lease": 5,
            **settings,
        }
        app = bare_app(**redis_config(redis), **setting_names(more))
        Idempotency(app)

        @app.post("/")
        @idempotent
        def view() -> Any:
            if request.args.get("slow"):
                gate()
            return {"answer": "tell-tale-answer"}, 201

        def spoil(what: str) -> None:
            if what == "store-unavailable":
                redis.stop()
                return
            with redis.client() as client:
                (name,) = client.keys("*")
                record = client.get(name)
                if what == "record-unreadable":
                    client.set(name, record[:-3] + b"!!!")
                else:  # pending, its lease over a minute ago, as a dead worker leaves it
                    client.set(name, record[:1] + b"P" + record[2:52] + b"%013d" % 1_000_000_000_000)

        return Provocation(code, serve(app), gate, pool, spoil)

    yield make
    gate.open()
    pool.shutdown()


pytestmark = pytest.mark.redis


@pytest.mark.parametrize("code", TITLES)
def test_an_error_is_a_problem_document(provoke: Callable[..., Provocation], code: str) -> None:
    answer = provoke(code)()
    problem = assert_problem(answer, code)
    assert problem["type"] == "about:blank"
    assert problem["retryable"] is (code in RETRYABLE)
    assert len(problem["detail"]) > 20
    assert answer.headers["Content-Language"] == "en"
    assert "Link" not in answer.headers
    assert ("Retry-After" in answer.headers) is (code in RETRYABLE)
    if code in RETRYABLE:
        assert answer.headers["Retry-After"].isdigit()
        assert int(answer.headers["Retry-After"]) >= 1


@pytest.mark.parametrize("code", TITLES)
def test_with_a_docs_url_the_error_links_to_its_code(provoke: Callable[..., Provocation], code: str) -> None:
    answer = provoke(code, docs_url=DOCS)()
    assert assert_problem(answer, code)["type"] == f"{DOCS}#{code}"
    link = requests.utils.parse_header_links(answer.headers["Link"])
    assert [entry["rel"] for entry in link] == ["describedby"]
    assert link[0]["url"] in (DOCS, f"{DOCS}#{code}")


@pytest.mark.parametrize("code", TITLES)
def test_a_client_that_prefers_html_gets_a_page(provoke: Callable[..., Provocation], code: str) -> None:
    answer = provoke(code, docs_url=DOCS)(Accept=HTML)
    status, title = TITLES[code]
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, "text/html; charset=utf-8")
    assert f"<h1>{title}</h1>" in answer.text
    assert answer.headers["Content-Language"] == "en"
    assert "describedby" in answer.headers["Link"]
    assert ("Retry-After" in answer.headers) is (code in RETRYABLE)
    assert "Accept" in answer.headers["Vary"]


@pytest.mark.parametrize("accept", ["application/json", HTML], ids=["JSON", "HTML"])
@pytest.mark.parametrize("code", TITLES)
def test_no_error_says_anything_of_another_party(provoke: Callable[..., Provocation], code: str, accept: str) -> None:
    answer = provoke(code)(Accept=accept)
    assert answer.status_code == TITLES[code][0]
    said = answer.text + "".join(f"{name}: {value}" for name, value in answer.headers.items())
    assert not [secret for secret in FOREIGN if secret in said]
    for trace in ("Traceback", "Error", "redis", "Redis", "127.0.0.1", "sha", "idempotency:{"):
        assert trace not in answer.text


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("application/problem+json", "json"),
        ("text/html", "html"),
        (HTML, "html"),
        ("text/html;q=0.5, application/json", "json"),
        ("text/html, application/json;q=0.5", "html"),
        ("text/html, application/problem+json", "json"),
        ("text/html;q=0.9, */*;q=0.8", "html"),
        ("application/*, text/html;q=0.1", "json"),
        ("text/*, application/json;q=0.2", "html"),
        ("image/png", "json"),
        ("", "json"),
        (";;;,nonsense", "json"),
    ],
)
def test_the_accept_header_chooses_between_json_and_html(
    guarded: Callable[..., Server], accept: str | None, kind: str
) -> None:
    server = guarded(lambda: "x", required=True)
    answer = server.raw(*([] if accept is None else [f"Accept: {accept}"]))
    assert answer.status_code == 400
    expected = {"json": "application/problem+json", "html": "text/html; charset=utf-8"}[kind]
    assert answer.headers["Content-Type"] == expected


# --- Overriding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", TITLES)
def test_an_app_gives_its_own_answers_by_the_base_class(provoke: Callable[..., Provocation], code: str) -> None:
    provocation = provoke(code, docs_url=DOCS)

    def handle(error: IdempotencyError) -> Any:
        assert type(error) is CLASSES[code]
        facts = {
            "code": error.problem_code,
            "status": error.code,
            "retryable": error.retryable,
            "detail": error.detail,
            "later": error.retry_after,
        }
        return jsonify(own=facts), error.code, {"X-Own": "1"}

    provocation._server.app.register_error_handler(IdempotencyError, handle)
    answer = provocation()
    own = answer.json()["own"]
    assert (answer.status_code, answer.headers["X-Own"]) == (TITLES[code][0], "1")
    assert (own["code"], own["status"], own["retryable"]) == (code, TITLES[code][0], code in RETRYABLE)
    assert own["detail"]
    assert (own["later"] or 0) >= (code in RETRYABLE)


def test_an_app_overrides_one_error_and_leaves_the_others(
    make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    app = make_app()
    app.register_error_handler(KeyMissing, lambda error: ("send a key", 428))
    app.post("/")(idempotent(required=True)(lambda: "x"))
    server = serve(app)
    assert (server.post().status_code, server.post().text) == (428, "send a key")
    assert_problem(server.post(key="a b"), "key-invalid")


@pytest.mark.parametrize("caught", [HTTPException, Exception])
def test_general_handlers_of_the_app_get_the_errors_as_well(
    make_app: Callable[..., Flask], serve: Callable[..., Server], caught: type[Exception]
) -> None:
    app = make_app()
    app.register_error_handler(caught, lambda error: ({"title": error.title}, error.code))
    app.post("/")(idempotent(required=True)(lambda: "x"))
    answer = serve(app).post()
    assert (answer.status_code, answer.json()) == (400, {"title": "Idempotency-Key is missing"})


@pytest.mark.parametrize("scope", ["app", "blueprint"])
def test_a_handler_of_the_base_class_is_asked_wherever_it_stands(
    make_app: Callable[..., Flask], serve: Callable[..., Server], scope: str
) -> None:
    app, orders = make_app(), Blueprint("orders", __name__)
    target: Any = app if scope == "app" else orders
    target.register_error_handler(IdempotencyError, lambda error: (f"own {error.problem_code}", error.code))
    orders.post("/")(idempotent(required=True)(lambda: "x"))
    app.register_blueprint(orders)
    server = serve(app)
    assert server.post().text == "own key-missing"
    assert server.post(key="a b").text == "own key-invalid"


def test_a_handler_may_give_the_original_answer_with_more_headers(
    make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    app = make_app()

    @app.errorhandler(IdempotencyError)
    def handle(error: IdempotencyError) -> Response:
        response = app.make_response(error.get_response(request.environ))
        response.headers["X-Support"] = "call us"
        return response

    app.post("/")(idempotent(required=True)(lambda: "x"))
    answer = serve(app).post()
    assert_problem(answer, "key-missing")
    assert answer.headers["X-Support"] == "call us"


def test_an_error_of_the_guard_is_not_stored_as_an_outcome(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(lambda: ({"run": runs()}, 201))
    server.post(key="k", json={"a": 1})
    for _ in range(2):
        assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
        assert server.post(key="k", json={"a": 1}).headers[REPLAYED] == "true"
    assert runs.count == 1


def test_a_view_that_raises_an_error_of_ours_is_judged_like_any_other(
    guarded: Callable[..., Server], runs: Runs
) -> None:
    """A view that calls another guarded service may pass its refusal on."""

    def view() -> Any:
        if runs() == 1:
            raise RequestInProgress(retry_after=2)
        return {}, 201

    server = guarded(view)
    answer = server.post(key="k")
    assert_problem(answer, "request-in-progress")
    assert answer.headers["Retry-After"] == "2"
    assert_original(server.post(key="k"))
    assert runs.count == 2


def test_the_errors_are_for_caches_not_to_keep(guarded: Callable[..., Server]) -> None:
    answer = guarded(lambda: "x", required=True).post()
    assert "no-store" in answer.headers["Cache-Control"]
    assert json.loads(answer.text)["code"] == "key-missing"
    assert eventually(lambda: answer.headers["Content-Language"] == "en")
