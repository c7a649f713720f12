"""The replay: status, headers and body of the first answer, whatever a view returns, and nothing of one caller."""

from __future__ import annotations

import gzip
import io
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flask import (
    Flask,
    Response,
    after_this_request,
    g,
    jsonify,
    make_response,
    redirect,
    render_template_string,
    request,
    send_file,
    session,
    stream_with_context,
)
from markupsafe import Markup
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response as BaseResponse
from werkzeug.wsgi import FileWrapper

from flask_idempotent import idempotent

from .conftest import (
    HEADER,
    REPLAYED,
    Gate,
    Runs,
    Server,
    assert_original,
    assert_problem,
    assert_replay,
    eventually,
    header_lines,
    once_ended,
)

OMITTED = "Idempotency-Replay"
EVERY_BYTE = bytes(range(256))
HERE = Path(__file__)


def words() -> Iterator[str]:
    yield from ("one ", "", "two ", "drei ", "été")


def mixed() -> Iterator[str | bytes]:
    yield from ("text ", b"\x00\xff", "é", b"")


def of_request() -> Iterator[str]:
    yield from ("path ", request.path)
    yield str(request.get_json())


def etagged() -> Response:
    response = jsonify(a=1)
    response.add_etag()
    response.last_modified = 1_700_000_000
    return response


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    start_response("203 Through WSGI", [("Content-Type", "text/plain"), ("X-From", "wsgi")])
    return [b"from ", b"wsgi"]


VIEWS: dict[str, tuple[int, Callable[[], Any]]] = {
    "dict": (200, lambda: {"b": 1, "a": [None, True, 1.5, "é"]}),
    "empty dict": (200, dict),
    "list": (200, lambda: [3, 1, 2]),
    "empty list": (200, list),
    "null": (200, lambda: jsonify(None)),
    "false": (200, lambda: jsonify(False)),
    "zero": (200, lambda: jsonify(0)),
    "str": (200, lambda: "grüße ✓"),
    "empty str": (200, str),
    "bytes": (200, lambda: EVERY_BYTE),
    "empty bytes": (200, bytes),
    "markup": (200, lambda: Markup("<b>bold</b>")),
    "template": (200, lambda: render_template_string("<p>{{ request.path }}</p>")),
    "500 kB of text": (200, lambda: "compress me " * 40_000),
    "500 kB of noise": (200, lambda: b"".join(EVERY_BYTE[n % 256 :] + EVERY_BYTE[: n % 251] for n in range(1000))),
    "body and status": (201, lambda: ({"id": 1}, 201)),
    "str and status": (202, lambda: ("accepted", 202)),
    "body and headers": (200, lambda: ("text", {"X-One": "1", "Content-Type": "text/csv"})),
    "body and header pairs": (200, lambda: ("text", [("X-Many", "1"), ("X-Many", "2")])),
    "body, status and headers": (201, lambda: ({"id": 1}, 201, {"Location": "/orders/1"})),
    "generator and status": (202, lambda: (words(), 202)),
    "None and 204": (204, lambda: ("", 204)),
    "204 with headers": (204, lambda: ("", 204, {"X-Deleted": "1", "ETag": '"x"'})),
    "304": (304, lambda: ("", 304, {"ETag": '"x"'})),
    "202 with Retry-After": (202, lambda: ({"job": 1}, 202, {"Retry-After": "30", "Location": "/jobs/1"})),
    "303": (303, lambda: redirect("/orders/1?é=1", 303)),
    "302 elsewhere": (302, lambda: redirect("https://example.com/a?b=c#d")),
    "reason phrase": (299, lambda: ("fine", "299 Quite All Right")),
    "400": (400, lambda: ({"error": "no"}, 400)),
    "402": (402, lambda: ({"error": "declined"}, 402)),
    "404": (404, lambda: ({"error": "unknown"}, 404)),
    "409": (409, lambda: ({"error": "conflict"}, 409)),
    "422": (422, lambda: ({"error": "invalid"}, 422)),
    "418 with HTML": (418, lambda: ("<h1>teapot</h1>", 418)),
    "Response": (200, lambda: Response("text", mimetype="text/csv")),
    "Response of chunks": (200, lambda: Response(["a", b"b", "é"])),
    "Response without a type": (200, lambda: _without_type()),
    "Response of another charset": (
        200,
        lambda: Response("é".encode("latin-1"), content_type="text/plain; charset=latin-1"),
    ),
    "Werkzeug's Response": (200, lambda: BaseResponse(b"base", headers={"X-Base": "1"})),
    "make_response": (201, lambda: make_response(({"a": 1}, 201, {"X-Made": "1"}))),
    "jsonify": (200, lambda: jsonify(a=1, b=[2])),
    "problem": (200, lambda: Response('{"a":1}', content_type="application/vnd.api+json; v=1")),
    "etag": (200, etagged),
    "gzip": (200, lambda: Response(gzip.compress(b"text", mtime=0), headers={"Content-Encoding": "gzip"})),
    "exception as an answer": (404, NotFound),
    "WSGI app": (203, lambda: wsgi_app),
    "multi-valued headers": (
        200,
        lambda: (
            "",
            [("Link", "</a>; rel=a"), ("Link", "</b>; rel=b"), ("Vary", "A"), ("Vary", "B"), ("x-lower", "1")],
        ),
    ),
    "odd headers": (200, lambda: ("", {"X-Empty": "", "X-Latin": "é", "X-Long": "v" * 8000, "X-Quote": '"a, b;c"'})),
    "caching headers": (
        200,
        lambda: ("x", {"Cache-Control": "max-age=60", "Expires": "0", "Age": "7", "Allow": "POST"}),
    ),
    "generator": (200, words),
    "empty generator": (200, lambda: iter(())),
    "generator of text and bytes": (200, mixed),
    "Response of a generator": (201, lambda: Response(words(), 201, content_type="text/event-stream")),
    "generator with its length": (200, lambda: Response(iter([b"abc", b"def"]), headers={"Content-Length": "6"})),
    "stream_with_context": (200, lambda: Response(stream_with_context(of_request()))),
    "file": (200, lambda: send_file(HERE)),
    "file as attachment": (200, lambda: send_file(HERE, as_attachment=True, download_name="ünï.txt", max_age=60)),
    "file in memory": (200, lambda: send_file(io.BytesIO(EVERY_BYTE), mimetype="image/png")),
    "file without conditions": (
        200,
        lambda: send_file(io.BytesIO(EVERY_BYTE), mimetype="a/b", conditional=False, etag=False),
    ),
    "file wrapper": (200, lambda: Response(FileWrapper(io.BytesIO(EVERY_BYTE * 99)), direct_passthrough=True)),
    "passed through": (200, lambda: Response(iter([b"a", b"b"]), direct_passthrough=True)),
}


def _without_type() -> Response:
    response = Response(b"\x00")
    del response.headers["Content-Type"]
    return response


@pytest.mark.parametrize(("status", "view"), VIEWS.values(), ids=VIEWS.keys())
def test_whatever_a_view_returns_is_replayed_and_runs_once(
    workers: Callable[..., list[Server]], runs: Runs, status: int, view: Callable[[], Any]
) -> None:
    def make_view() -> Callable[[], Any]:
        def counted() -> Any:
            runs()
            return view()

        return counted

    servers = workers(make_view)
    first = servers[0].post(key="k", json={"a": 1})
    assert_original(first, status)
    for server in (*servers, servers[0]):
        again = once_ended(server, json={"a": 1})
        assert_replay(again, first)
        if status not in (204, 304):
            assert again.headers["Content-Length"] == first.headers.get("Content-Length", str(len(again.content)))
    assert runs.count == 1


def test_a_replay_has_the_run_of_the_original(workers: Callable[..., list[Server]], runs: Runs) -> None:
    """The table above would not notice a second run that answers the same; this answer tells the runs apart."""
    servers = workers(lambda: lambda: ({"run": runs()}, 201, {"X-Run": str(runs.count)}))
    answers = [server.post(key="k") for _ in range(3) for server in servers]
    assert {(answer.json()["run"], answer.headers["X-Run"]) for answer in answers} == {(1, "1")}
    assert [REPLAYED in answer.headers for answer in answers] == [False] + [True] * (len(answers) - 1)


def test_a_replayed_file_is_the_one_that_was_sent(
    workers: Callable[..., list[Server]], tmp_path: Path, runs: Runs
) -> None:
    path = tmp_path / "invoice.txt"
    path.write_bytes(b"first")

    def view() -> Response:
        runs()
        return send_file(path)

    servers = workers(lambda: view)
    first = servers[0].post(key="k")
    path.write_bytes(b"second")
    for server in servers:
        assert_replay(once_ended(server), first)
    assert first.content == b"first"
    assert runs.count == 1


# --- Headers ------------------------------------------------------------------------------------------------------

NOT_KEPT = {
    "Set-Cookie": "session=of-the-first; Path=/",
    "Date": "Mon, 01 Jan 2001 00:00:00 GMT",
    "Server": "of-the-first",
    "Connection": "x-of-the-first",
    "Keep-Alive": "timeout=5",
    "Proxy-Connection": "keep-alive",
    "TE": "trailers",
    "Trailer": "Expires",
    "Upgrade": "h2c",
}


@pytest.mark.parametrize("spelling", [str, str.lower, str.upper], ids=["as is", "lower", "upper"])
def test_what_belongs_to_one_answer_is_not_repeated(
    workers: Callable[..., list[Server]], spelling: Callable[[str], str]
) -> None:
    headers = {spelling(name): value for name, value in NOT_KEPT.items()} | {"X-Kept": "1"}
    servers = workers(lambda: lambda: ("x", 201, headers))
    first = servers[0].post(key="k")
    for name, value in NOT_KEPT.items():
        assert value in header_lines(first, name)
    for server in servers:
        again = server.post(key="k")
        assert not [name for name, value in NOT_KEPT.items() if value in header_lines(again, name)]
        assert (again.headers["X-Kept"], again.headers[REPLAYED]) == ("1", "true")


def test_the_original_never_carries_the_mark_of_a_replay(guarded: Callable[..., Server], runs: Runs) -> None:
    """Not even when the view passes on the answer of another service that marks its replays the same way."""
    server = guarded(lambda: ({"run": runs()}, 201, {REPLAYED: "true"}))
    assert REPLAYED not in server.post(key="k").headers
    assert header_lines(server.post(key="k"), REPLAYED) == ["true"]
    assert runs.count == 1


def test_errors_of_the_guard_do_not_carry_the_mark_of_a_replay(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: "x", required=True)
    server.post(key="k")
    for answer in (server.post(), server.post(key="a b"), server.post("/?other=1", key="k")):
        assert answer.status_code in (400, 422)
        assert REPLAYED not in answer.headers


def test_each_replay_of_many_is_the_same(workers: Callable[..., list[Server]], runs: Runs) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, 201, [("X-Many", "1"), ("X-Many", "2")]))
    first = servers[0].post(key="k")
    for _ in range(3):
        for server in servers:
            assert_replay(server.post(key="k"), first)


# --- What surrounds a view -----------------------------------------------------------------------------------------


def cross_origin(response: Response) -> Response:
    response.headers["Access-Control-Allow-Origin"] = request.headers.get("Origin", "none")
    response.headers.add("Access-Control-Expose-Headers", REPLAYED)
    response.vary.add("Origin")
    return response


def test_headers_of_after_request_stand_on_the_original_and_anew_on_the_replay(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()
    app.after_request(cross_origin)
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201, {"Vary": "Accept"})))
    server = serve(app)
    for origin in ("https://one.example", "https://two.example"):
        answer = server.post(key="k", headers={"Origin": origin})
        assert header_lines(answer, "Access-Control-Allow-Origin") == [origin]
        assert header_lines(answer, "Access-Control-Expose-Headers") == [REPLAYED]
        assert header_lines(answer, "Vary") == ["Accept, Origin"]
    assert answer.headers[REPLAYED] == "true"
    problem = server.post("/?other=1", key="k", headers={"Origin": "https://three.example"})
    assert problem.headers["Access-Control-Allow-Origin"] == "https://three.example"
    assert runs.count == 1


def test_what_a_view_adds_by_after_this_request_is_part_of_its_answer(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    def view() -> Any:
        @after_this_request
        def add(response: Response) -> Response:
            response.headers["X-Order"] = "17"
            response.set_cookie("of", "the-first")
            return response

        return {"run": runs()}, 201

    servers = workers(lambda: view)
    first = servers[0].post(key="k")
    assert first.headers["X-Order"] == "17"
    for server in servers:
        again = server.post(key="k")
        assert_replay(again, first)
        assert "Set-Cookie" not in again.headers


def test_a_session_is_written_by_the_original_and_not_handed_to_whoever_gets_the_replay(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    def view() -> Any:
        session["user"] = runs()
        return {"visits": session["user"]}

    servers = workers(lambda: view)
    first = servers[0].post(key="k")
    assert "session=" in first.headers["Set-Cookie"]
    for server in servers:
        again = server.post(key="k")
        assert (again.json(), again.headers[REPLAYED]) == (first.json(), "true")
        assert "Set-Cookie" not in again.headers
    assert runs.count == 1


def test_a_replay_keeps_the_session_of_its_own_client_alive(
    make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    app = make_app()

    @app.post("/login/<name>")
    def login(name: str) -> str:
        session["user"], session.permanent = name, True
        return name

    app.get("/who", endpoint="who")(lambda: session["user"])
    app.post("/")(idempotent(lambda: {"by": session["user"]}))
    server = serve(app)
    cookies = {name: server.post(f"/login/{name}").cookies for name in ("alice", "bob")}
    server.post(key="k", cookies=cookies["alice"])
    again = server.post(key="k", cookies=cookies["bob"])
    assert again.headers[REPLAYED] == "true"
    assert server.request("GET", "/who", cookies=again.cookies).text == "bob"


def test_hooks_and_g_work_on_originals_and_on_replays(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    app, seen = make_app(), []
    app.before_request(lambda: setattr(g, "began", request.headers["X-Number"]))
    app.after_request(lambda response: seen.append(("after", g.began)) or response)
    app.teardown_request(lambda error: seen.append(("teardown", g.began)))
    app.teardown_appcontext(lambda error: seen.append(("appcontext", g.began)))

    @app.post("/")
    @idempotent
    def view() -> str:
        seen.append(("view", g.began))
        return g.began

    server = serve(app)
    for number in ("1", "2"):
        assert server.post(key="k", headers={"X-Number": number}).text == "1"
    hooks = ("after", "teardown", "appcontext")
    assert eventually(lambda: len(seen) == 7 and seen) == [
        ("view", "1"),
        *((hook, "1") for hook in hooks),
        *((hook, "2") for hook in hooks),
    ]


@pytest.mark.parametrize("kind", ["whole", "streamed"])
def test_call_on_close_is_called_once_for_the_original(guarded: Callable[..., Server], kind: str) -> None:
    closed = Runs()

    def view() -> Response:
        response = Response("text" if kind == "whole" else words())
        response.call_on_close(closed)
        return response

    server = guarded(view)
    first = server.post(key="k")
    assert_replay(server.post(key="k"), first)
    eventually(lambda: closed.count == 1)


# --- Size ---------------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[bytes], Any]] = {
    "bytes": lambda body: body,
    "Response": lambda body: Response(body, headers={"X-Kept": "1"}),
    "list": lambda body: Response([body[:1], body[1:]]),
    "generator": lambda body: (body[at : at + 777] for at in range(0, len(body), 777)),
    "file": lambda body: send_file(io.BytesIO(body), mimetype="text/plain"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0, 999, 1000])
def test_a_body_up_to_the_limit_is_replayed_whole(
    workers: Callable[..., list[Server]], runs: Runs, shape: str, size: int
) -> None:
    servers = workers(lambda: lambda: (runs(), SHAPES[shape](b"x" * size))[1], max_body=1000)
    first = servers[0].post(key="k")
    assert len(first.content) == size
    for server in servers:
        again = once_ended(server)
        assert_replay(again, first)
        assert OMITTED not in again.headers
    assert runs.count == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "limit"), [(1001, 1000), (5_000_000, 1000), (1, 0), (1024 * 1024 + 1, None)])
def test_a_body_over_the_limit_reaches_the_client_and_is_left_out_of_the_replay(
    workers: Callable[..., list[Server]], runs: Runs, shape: str, size: int, limit: int | None
) -> None:
    servers = workers(
        lambda: lambda: (runs(), SHAPES[shape](b"x" * size), 202)[1:], **({} if limit is None else {"max_body": limit})
    )
    first = servers[0].post(key="k")
    assert_original(first, 202)
    assert first.content == b"x" * size
    assert OMITTED not in first.headers
    for server in servers:
        again = once_ended(server)
        assert (again.status_code, again.content) == (202, b"")
        assert (again.headers[REPLAYED], again.headers[OMITTED]) == ("true", "omitted")
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert again.headers["Content-Length"] == "0"
        assert again.headers.get("X-Kept") == first.headers.get("X-Kept")
    assert runs.count == 1


def test_a_long_stream_is_never_held_in_memory(guarded: Callable[..., Server]) -> None:
    size, count = 64 * 1024, 600  # 37 MiB in all
    server = guarded(lambda: Response(bytes(size) for _ in range(count)))
    buffer, received = bytearray(1024 * 1024), 0
    tracemalloc.start()
    try:
        with closing(server.connect()) as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{HEADER}: k\r\nContent-Length: 0\r\n\r\n".encode())
            while read := connection.recv_into(buffer):
                received += read
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received > size * count
    assert peak < 5 * 1024 * 1024, f"{peak} bytes in memory for a limit of 1 MiB"
    assert eventually(lambda: server.post(key="k").headers.get(OMITTED)) == "omitted"


# --- Streams ------------------------------------------------------------------------------------------------------


def test_a_stream_reaches_the_client_while_it_runs_and_holds_its_key(
    workers: Callable[..., list[Server]], gate: Gate, runs: Runs
) -> None:
    def view() -> Response:
        runs()

        def chunks() -> Iterator[str]:
            yield "first "
            gate()
            yield "last"

        return Response(chunks())

    servers = workers(lambda: view)
    with closing(servers[0].connect()) as connection:
        connection.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{HEADER}: k\r\nContent-Length: 0\r\n\r\n".encode())
        received = b""
        while b"first " not in received:
            received += connection.recv(1000)
        gate.await_view()
        for server in servers:
            assert_problem(server.post(key="k"), "request-in-progress")
        gate.open()
        while chunk := connection.recv(1000):
            received += chunk
    assert b"last" in received
    for server in servers:
        again = once_ended(server)
        assert (again.text, again.headers[REPLAYED]) == ("first last", "true")
    assert runs.count == 1


def test_a_stream_that_is_longer_than_its_lease_keeps_its_key(
    workers: Callable[..., list[Server]], gate: Gate, runs: Runs
) -> None:
    def view() -> Response:
        runs()

        def chunks() -> Iterator[str]:
            yield "first "
            gate()
            yield "last"

        return Response(chunks())

    servers = workers(lambda: view, lease=0.3)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(servers[0].post(key="k")))
    thread.start()
    gate.await_view()
    three_leases_on = time.monotonic() + 1.0
    while time.monotonic() < three_leases_on:
        for server in servers:
            assert_problem(server.post(key="k"), "request-in-progress")
    gate.open()
    thread.join()
    assert eventually(lambda: servers[-1].post(key="k").text == "first last")
    assert answers[0].text == "first last"
    assert runs.count == 1


def test_a_client_that_has_all_of_a_stream_gets_the_replay_and_not_409(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    """With a Content-Length the client knows that it has everything, and may send its duplicate at once."""

    def view() -> Response:
        runs()

        def chunks() -> Iterator[bytes]:
            yield b"abc"
            time.sleep(0.2)  # what a file system may take to say that there is no more

        return Response(chunks(), headers={"Content-Length": "3"})

    servers = workers(lambda: view)
    first = servers[0].post(key="k")
    assert first.content == b"abc"
    for server in servers:
        assert_replay(server.post(key="k"), first)
    assert runs.count == 1


def test_the_generator_of_a_stream_is_closed_once(guarded: Callable[..., Server], runs: Runs) -> None:
    closed = Runs()

    def view() -> Response:
        runs()

        def chunks() -> Iterator[str]:
            try:
                yield "a"
                yield "b"
            finally:
                closed()

        return Response(chunks())

    server = guarded(view)
    first = server.post(key="k")
    assert_replay(server.post(key="k"), first)
    assert (runs.count, closed.count) == (1, 1)


class Upper(Response):
    """An answer that takes its form on the way out."""

    def iter_encoded(self) -> Iterator[bytes]:
        return (chunk.upper() for chunk in super().iter_encoded())


def test_an_answer_that_is_encoded_on_the_way_out_is_replayed_as_it_was_sent(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: Upper("abc"))
    first, again = server.post(key="k"), server.post(key="k")
    assert first.content == again.content == b"ABC"
    assert_replay(again, first)
