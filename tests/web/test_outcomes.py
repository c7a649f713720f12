"""Outcomes that are kept, refusals that free the key, and failures that only the same request may retry."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import pytest
import requests
from flask import Blueprint, Flask, Response, abort, got_request_exception, request
from werkzeug.exceptions import Conflict, HTTPException, ServiceUnavailable, Unauthorized

from flask_idempotent import ConfigurationError, IdempotencyError, current_idempotency, idempotent

from .conftest import (
    HEADER,
    REPLAYED,
    Runs,
    Server,
    assert_original,
    assert_problem,
    assert_replay,
    eventually,
    once_ended,
)

KEPT, REFUSED, FAILED = "kept", "refused", "failed"
WITH_RETRY_AFTER = {"Retry-After": "1"}


class Declined(Exception):
    pass


def assert_fate(fate: str, servers: list[Server], runs: Runs, status: int) -> None:
    """Send the request, repeat it, and send another under the same key; ``runs`` tells what became of each."""
    first = servers[0].post(key="k", json={"a": 1})
    assert_original(first, status)
    assert runs.count == 1
    other = servers[-1]
    if fate == KEPT:
        for server in servers:
            assert_replay(server.post(key="k", json={"a": 1}), first)
            assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
        assert runs.count == 1
    elif fate == REFUSED:
        assert_original(other.post(key="k", json={"a": 2}), status)
        assert runs.count == 2
        assert_original(servers[0].post(key="k", json={"a": 1}, headers={"Authorization": "Bearer new"}), status)
        assert runs.count == 3
    else:
        assert_problem(other.post(key="k", json={"a": 2}), "key-reused")
        assert_problem(other.post(key="k", json={"a": 1}, headers={"Authorization": "Bearer new"}), "key-reused")
        assert runs.count == 1
        assert_original(other.post(key="k", json={"a": 1}), status)
        assert_original(servers[0].post(key="k", json={"a": 1}), status)
        assert runs.count == 3


ANSWERS: list[tuple[int, dict[str, str], str]] = [
    *((status, {}, KEPT) for status in (200, 201, 202, 204, 206, 226, 302, 303, 304, 308)),
    *((status, {}, KEPT) for status in (400, 402, 404, 409, 410, 412, 413, 418, 422, 423, 451)),
    (200, WITH_RETRY_AFTER, KEPT),
    (202, WITH_RETRY_AFTER, KEPT),
    (303, WITH_RETRY_AFTER, KEPT),
    *((status, {}, REFUSED) for status in (401, 403, 408, 425, 429)),
    *((status, WITH_RETRY_AFTER, REFUSED) for status in (400, 401, 404, 409, 422)),
    (409, {"retry-after": "Fri, 31 Dec 2027 23:59:59 GMT"}, REFUSED),
    *((status, {}, FAILED) for status in (500, 502, 503, 504, 599)),
    (503, WITH_RETRY_AFTER, FAILED),
]


@pytest.mark.parametrize(("status", "headers", "fate"), ANSWERS)
def test_the_status_says_what_becomes_of_the_outcome(
    workers: Callable[..., list[Server]], runs: Runs, status: int, headers: dict[str, str], fate: str
) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, status, headers))
    assert_fate(fate, servers, runs, status)


# --- Exceptions -----------------------------------------------------------------------------------------------------


def raising(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def view() -> Any:
        raise error()

    return view


def aborting(*args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: abort(*args, **kwargs)


ENDINGS: dict[str, tuple[Callable[[], Any], int, str]] = {
    "abort 400": (aborting(400), 400, KEPT),
    "abort 404": (aborting(404), 404, KEPT),
    "abort 409": (aborting(409), 409, KEPT),
    "abort 422": (aborting(422, "no such item"), 422, KEPT),
    "abort with a response": (aborting(Response("made", 418)), 418, KEPT),
    "abort with a refusal": (aborting(Response("made", 409, {"Retry-After": "1"})), 409, REFUSED),
    "abort 401": (aborting(401), 401, REFUSED),
    "abort 429": (aborting(429), 429, REFUSED),
    "abort 429 later": (aborting(429, retry_after=3), 429, REFUSED),
    "abort 500": (aborting(500), 500, FAILED),
    "abort 503": (aborting(503), 503, FAILED),
    "raised HTTPException": (raising(Conflict), 409, KEPT),
    "raised HTTPException with a response": (raising(lambda: Conflict(response=Response("own", 409))), 409, KEPT),
    "raised refusal": (raising(Unauthorized), 401, REFUSED),
    "raised 503": (raising(lambda: ServiceUnavailable(retry_after=1)), 503, FAILED),
    "exception": (raising(lambda: LookupError("secret")), 500, FAILED),
    "assertion": (raising(lambda: AssertionError("secret")), 500, FAILED),
    "bad return value": (lambda: None, 500, FAILED),
    "bad tuple": (lambda: ("a", "b", "c", "d"), 500, FAILED),
    "missing form field": (lambda: request.form["nothing"], 400, KEPT),
    "unsupported media type": (lambda: request.get_json() if not request.is_json else aborting(415)(), 415, KEPT),
}


@pytest.mark.parametrize(("view", "status", "fate"), ENDINGS.values(), ids=ENDINGS.keys())
def test_an_exception_is_judged_by_the_answer_that_flask_makes_of_it(
    workers: Callable[..., list[Server]], runs: Runs, view: Callable[[], Any], status: int, fate: str
) -> None:
    servers = workers(lambda: lambda: (runs(), view())[1])
    assert_fate(fate, servers, runs, status)


def but_ours(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A handler for everything that leaves the guard's own errors as they are."""
    return lambda error: error if isinstance(error, IdempotencyError) else handler(error)


HANDLED: dict[str, tuple[type[Exception] | int, Callable[[Any], Any], Callable[[], Any], int, str]] = {
    "own exception to 422": (Declined, lambda e: ({"error": "declined"}, 422), raising(Declined), 422, KEPT),
    "own exception to 402": (Declined, lambda e: ({"error": "declined"}, 402), raising(Declined), 402, KEPT),
    "own exception to 200": (Declined, lambda e: "all is well", raising(Declined), 200, KEPT),
    "own exception to 429": (Declined, lambda e: ({}, 429), raising(Declined), 429, REFUSED),
    "own exception to 409 later": (Declined, lambda e: ({}, 409, WITH_RETRY_AFTER), raising(Declined), 409, REFUSED),
    "own exception to 503": (Declined, lambda e: ({}, 503), raising(Declined), 503, FAILED),
    "every exception to 400": (Exception, but_ours(lambda e: ({}, 400)), raising(LookupError), 400, KEPT),
    "404 to 410": (404, lambda e: ({}, 410), aborting(404), 410, KEPT),
    "404 to 500": (404, lambda e: ({}, 500), aborting(404), 500, FAILED),
    "404 to 403": (404, lambda e: ({}, 403), aborting(404), 403, REFUSED),
    "every HTTP error to its JSON": (
        HTTPException,
        but_ours(lambda e: ({"code": e.code}, e.code)),
        aborting(409),
        409,
        KEPT,
    ),
    "401 to 303": (401, lambda e: ("", 303, {"Location": "/login"}), aborting(401), 303, KEPT),
    "500 to a page": (500, lambda e: ("sorry", 500), raising(LookupError), 500, FAILED),
    "500 to 200": (500, lambda e: ("never mind", 200), raising(LookupError), 200, FAILED),
    "abort 500 to 409": (500, lambda e: ({}, 409), aborting(500), 409, KEPT),
    "a handler that raises": (Declined, raising(LookupError), raising(Declined), 500, FAILED),
    "a handler that raises for abort": (404, raising(LookupError), aborting(404), 500, FAILED),
    "a handler that returns nonsense": (Declined, lambda e: None, raising(Declined), 500, FAILED),
}


BOTH_SCOPES = [
    pytest.param(scope, *case, id=f"{name}-{scope}")
    for name, case in HANDLED.items()
    for scope in ("app", "blueprint")
    if (scope, case[0]) != ("blueprint", 500)  # Flask asks only the app's handlers for 500
]


@pytest.mark.parametrize(("scope", "caught", "handler", "view", "status", "fate"), BOTH_SCOPES)
def test_an_exception_is_judged_by_the_answer_of_the_apps_handlers(
    make_app: Callable[..., Flask],
    serve: Callable[..., Server],
    runs: Runs,
    scope: str,
    caught: Any,
    handler: Callable[[Any], Any],
    view: Callable[[], Any],
    status: int,
    fate: str,
) -> None:
    app, orders = make_app(), Blueprint("orders", __name__)
    app.errorhandler(caught)(handler) if scope == "app" else orders.errorhandler(caught)(handler)
    orders.post("/")(idempotent(lambda: (runs(), view())[1]))
    app.register_blueprint(orders)
    assert_fate(fate, [serve(app)], runs, status)


def test_a_handler_runs_once_and_finds_the_request(make_app: Any, serve: Any, runs: Runs) -> None:
    app: Flask = make_app()

    @app.errorhandler(Declined)
    def handle(error: Declined) -> Any:
        return {"handled": runs(), "path": request.path, "key": current_idempotency.key}, 422

    app.post("/")(idempotent(raising(Declined)))
    server = serve(app)
    first = server.post(key="k")
    assert first.json() == {"handled": 1, "path": "/", "key": "k"}
    assert_replay(server.post(key="k"), first)


def test_an_exception_without_a_handler_reaches_flask_as_it_is(make_app: Any, serve: Any, runs: Runs) -> None:
    app: Flask = make_app()
    seen: list[BaseException | None] = []
    app.teardown_request(lambda error: seen.append(error))
    app.post("/")(idempotent(raising(lambda: Declined("as it is"))))
    server = serve(app)
    with got_request_exception.connected_to(lambda sender, exception: seen.append(exception), app):
        assert server.post(key="k").status_code == 500
    assert [type(error) for error in seen] == [Declined, Declined]


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_even_what_is_no_exception_settles_the_key(
    make_app: Callable[..., Flask], runs: Runs, end: type[BaseException]
) -> None:
    """A worker that is told to stop (gunicorn's timeout raises SystemExit) does not leave the key to its lease."""
    app = make_app()

    def view() -> Any:
        if runs() == 1:
            raise end
        return {"attempt": current_idempotency.attempt}, 201

    app.post("/")(idempotent(view))
    client = app.test_client()
    with pytest.raises(end):
        client.post("/", headers={HEADER: "k"})
    answer = client.post("/", headers={HEADER: "k"})
    assert (answer.status_code, answer.get_json()) == (201, {"attempt": 2})


# --- Retries --------------------------------------------------------------------------------------------------------


def test_a_failure_is_retried_until_it_succeeds_and_then_replayed(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    def view() -> Any:
        if runs() < 4:
            raise LookupError
        return {"run": runs.count, "attempt": current_idempotency.attempt}, 201

    servers = workers(lambda: view)
    for number in range(3):
        assert servers[number % len(servers)].post(key="k").status_code == 500
    answer = servers[0].post(key="k")
    assert_original(answer)
    assert answer.json() == {"run": 4, "attempt": 4}
    for server in servers:
        assert_replay(server.post(key="k"), answer)
    assert runs.count == 4


def test_after_a_refusal_the_caller_comes_back_with_another_token(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    def view() -> Any:
        runs()
        return ({}, 201) if request.headers["Authorization"] == "Bearer fresh" else ({}, 401)

    servers = workers(lambda: view)
    assert servers[0].post(key="k", headers={"Authorization": "Bearer stale"}).status_code == 401
    answer = servers[-1].post(key="k", headers={"Authorization": "Bearer fresh"})
    assert_original(answer)
    assert_replay(servers[0].post(key="k", headers={"Authorization": "Bearer fresh"}), answer)
    assert runs.count == 2


def test_a_stream_that_breaks_is_a_failure(workers: Callable[..., list[Server]], runs: Runs) -> None:
    def view() -> Response:
        number = runs()

        def chunks() -> Iterator[str]:
            yield "first "
            if number == 1:
                raise LookupError("in the middle")
            yield "last"

        return Response(chunks())

    servers = workers(lambda: view)
    with suppress(requests.RequestException):
        servers[0].post(key="k", json={"a": 1})
    assert_problem(servers[-1].post(key="k", json={"a": 2}), "key-reused")
    answer = servers[-1].post(key="k", json={"a": 1})
    assert_original(answer, 200)
    assert answer.text == "first last"
    for server in servers:
        assert_replay(server.post(key="k", json={"a": 1}), answer)
    assert runs.count == 2


def test_an_answer_that_cannot_be_sent_or_stored_settles_its_key(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    """WSGI takes Latin-1 in headers; the view below makes an answer that no server can send."""
    servers = workers(lambda: lambda: ({"run": runs()}, 201, {"X-Name": "Ω" if runs.count == 1 else "O"}))
    with suppress(requests.RequestException):  # Werkzeug's server leaves its client waiting
        assert servers[0].post(key="k", timeout=0.5).status_code == 500
    answer = servers[-1].post(key="k")
    assert answer.status_code != 409, "the key is stuck"
    assert_original(answer)
    assert runs.count == 2


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_an_answer_with_more_headers_than_a_record_takes_settles_its_key(
    make_app: Callable[..., Flask], runs: Runs, streamed: bool
) -> None:
    app = make_app()

    def view() -> Any:
        headers = [("X-Many", str(number)) for number in range(70_000 if runs() == 1 else 1)]
        return Response((part for part in "ab") if streamed else "ab", 201, headers)

    app.post("/")(idempotent(view))
    client = app.test_client()
    with suppress(Exception):
        client.post("/", headers={HEADER: "k"}).get_data()
    answer = client.post("/", headers={HEADER: "k"})
    assert answer.status_code != 409, "the key is stuck"


# --- save= ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "headers", "fate"),
    [
        *((status, {}, KEPT) for status in (200, 201, 202, 204, 303, 402, 500, 502, 503)),
        (503, WITH_RETRY_AFTER, KEPT),
        (402, WITH_RETRY_AFTER, KEPT),
        *((status, {}, REFUSED) for status in (400, 401, 403, 404, 409, 410, 422, 429)),
    ],
)
def test_stripe_v1_keeps_5xx_and_402_and_forgets_other_4xx(
    workers: Callable[..., list[Server]], runs: Runs, status: int, headers: dict[str, str], fate: str
) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, status, headers), save="stripe-v1")
    assert_fate(fate, servers, runs, status)


def test_stripe_v1_does_not_keep_an_exception_without_an_answer(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    servers = workers(lambda: lambda: (runs(), raising(LookupError)())[1], save="stripe-v1")
    assert_fate(FAILED, servers, runs, 500)


@pytest.mark.parametrize(
    ("status", "save", "fate"),
    [
        (200, False, REFUSED),
        (404, False, REFUSED),
        (401, True, KEPT),
        (429, True, KEPT),
        (500, True, KEPT),
        (500, False, FAILED),
    ],
)
def test_a_route_keeps_what_it_likes(
    workers: Callable[..., list[Server]], runs: Runs, status: int, save: bool, fate: str
) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, status), save=lambda response: save)
    assert_fate(fate, servers, runs, status)


def test_the_predicate_gets_the_response_as_the_view_made_it(guarded: Callable[..., Server], runs: Runs) -> None:
    seen: list[tuple[int, str, str]] = []

    def save(response: Response) -> bool:
        seen.append((response.status_code, response.headers["X-Kind"], response.get_data(as_text=True)))
        return response.headers["X-Kind"] == "final"

    kinds = iter(["draft", "final", "never"])
    server = guarded(lambda: (str(runs()), 201, {"X-Kind": next(kinds)}), save=save)
    assert server.post(key="k").text == "1"
    answer = server.post(key="k")
    assert_original(answer)
    assert_replay(server.post(key="k"), answer)
    assert seen == [(201, "draft", "1"), (201, "final", "2")]


@pytest.mark.parametrize("broken", ["save", "ttl"])
@pytest.mark.parametrize(("status", "fate"), [(201, KEPT), (401, REFUSED), (500, FAILED)])
def test_a_predicate_that_raises_changes_neither_the_answer_nor_its_fate(
    workers: Callable[..., list[Server]], runs: Runs, status: int, fate: str, broken: str
) -> None:
    """The view's work is done: its client gets the answer, and the default rules say what becomes of it."""

    def decide(response: Response) -> Any:
        raise LookupError

    servers = workers(lambda: lambda: ({"run": runs()}, status), **{broken: decide})
    assert_fate(fate, servers, runs, status)


@pytest.mark.parametrize("ttl", [0, -1, None, "60", float("nan")], ids=repr)
def test_an_impossible_retention_of_a_function_is_not_taken(
    workers: Callable[..., list[Server]], runs: Runs, ttl: Any
) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, 201), ttl=lambda response: ttl)
    assert_fate(KEPT, servers, runs, 201)


@pytest.mark.parametrize(("status", "fate"), [(200, REFUSED), (404, REFUSED), (500, FAILED)])
def test_a_view_may_keep_one_answer_out_of_the_store(
    workers: Callable[..., list[Server]], runs: Runs, status: int, fate: str
) -> None:
    def view() -> Any:
        current_idempotency.do_not_store()
        return {"run": runs()}, status

    assert_fate(fate, workers(lambda: view), runs, status)


@pytest.mark.parametrize("save", ["stripe-v2", "", "STRIPE-V1"])
def test_an_unknown_policy_is_refused_where_it_is_written(save: str) -> None:
    with pytest.raises(ConfigurationError, match="stripe-v1"):
        idempotent(save=save)


# --- ttl= -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ttl",
    [0.3, timedelta(milliseconds=300), lambda response: 0.3, lambda response: timedelta(seconds=0.3)],
    ids=["seconds", "timedelta", "callable of seconds", "callable of a timedelta"],
)
def test_a_route_says_how_long_its_outcomes_are_kept(
    workers: Callable[..., list[Server]], runs: Runs, ttl: Any
) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, 201), ttl=ttl)
    began = time.monotonic()
    first = servers[0].post(key="k")
    again = servers[-1].post(key="k")
    if time.monotonic() - began < 0.25:
        assert_replay(again, first)
    fresh = eventually(lambda: REPLAYED not in (answer := servers[-1].post(key="k")).headers and answer)
    assert time.monotonic() - began >= 0.29
    assert fresh.json()["run"] == runs.count == 2


def test_the_retention_may_depend_on_the_response(workers: Callable[..., list[Server]], runs: Runs) -> None:
    def ttl(response: Response) -> float:
        return 0.2 if response.status_code == 404 else 600

    servers = workers(
        lambda: lambda: ({"run": runs()}, int(request.args["status"])),
        ttl=ttl,
        settings={"ttl": 500},
    )
    first = servers[0].post("/?status=201", key="long")
    servers[0].post("/?status=404", key="short")
    for server in servers:
        eventually(lambda server=server: REPLAYED not in server.post("/?status=404", key="short").headers)
        assert_replay(server.post("/?status=201", key="long"), first)


@pytest.mark.parametrize("ttl", [0, -1, "10", float("nan"), float("inf"), True, timedelta(0)], ids=repr)
def test_an_impossible_retention_is_refused_where_it_is_written(ttl: Any) -> None:
    with pytest.raises(ConfigurationError, match="ttl"):
        idempotent(ttl=ttl)


# --- Signs of life ---------------------------------------------------------------------------------------------------


def test_a_client_that_has_gone_does_not_turn_an_outcome_into_a_failure(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    servers = workers(lambda: lambda: ({"run": runs(), "long": "x" * 3_000_000}, 201), max_body=5_000_000)
    with closing(servers[0].connect()) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{HEADER}: k\r\nContent-Length: 0\r\n\r\n".encode())
    eventually(lambda: runs.count)
    for server in servers:
        answer = once_ended(server)
        assert answer.headers[REPLAYED] == "true"
        assert answer.json()["run"] == 1
    assert runs.count == 1
