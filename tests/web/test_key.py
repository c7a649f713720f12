"""The key: how it is spelt, where it stands, and what happens without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, render_template_string, request

from flask_idempotent import idempotent

from .conftest import HEADER, Runs, Server, assert_original, assert_problem, assert_replay

FORM = "application/x-www-form-urlencoded"

SAME_KEY = [
    ("k-1", '"k-1"'),
    ('"k-1"', "k-1"),
    ('"k-1"', '"k-1";a=1'),
    ('"k-1";a=1', '"k-1";b="x;y, z"'),
    ("k-1", "k-1;a=1"),
    ("k-1", "k-1; a; b=?1"),
    ("k-1", "  k-1\t"),
    (r'"a\"b\\c"', r'"a\"b\\c";v=2'),
    ('"8e03978e-40d5-43dd-bc93-6894a57f9324"', "8e03978e-40d5-43dd-bc93-6894a57f9324"),
]
OTHER_KEY = [
    ("k-1", "k-2"),
    ("k-1", "K-1"),
    ('"k 1"', '"k  1"'),
    ('"k;a"', '"k";a'),
    ('"k,1"', '"k1"'),
]
INVALID = {
    "empty": f"{HEADER}:",
    "empty with a blank": f"{HEADER}: ",
    "blank": f"{HEADER}:  \t ",
    "empty in quotes": f'{HEADER}: ""',
    "blank in quotes": f'{HEADER}: "   "',
    "256 bytes": f"{HEADER}: {'k' * 256}",
    "256 bytes in quotes": f'{HEADER}: "{"k" * 256}"',
    "8 KiB": f"{HEADER}: {'k' * 8192}",
    "a control character": f"{HEADER}: a\x01b",
    "a delete character": f"{HEADER}: a\x7fb",
    "a tab inside": f"{HEADER}: a\tb",
    "a tab in quotes": f'{HEADER}: "a\tb"',
    "Latin-1": f"{HEADER}: caf\xe9",
    "UTF-8": f"{HEADER}: café".encode(),
    "UTF-8 in quotes": f'{HEADER}: "café"'.encode(),
    "a no-break space": f"{HEADER}: a\xa0b",
    "an unterminated quote": f'{HEADER}: "abc',
    "only a quote": f'{HEADER}: "',
    "an escaped last quote": rf'{HEADER}: "abc\"',
    "a quote in a bare key": f'{HEADER}: ab"c',
    "something behind the quote": f'{HEADER}: "abc"d',
    "an unknown escape": rf'{HEADER}: "a\bc"',
    "a bad parameter": f'{HEADER}: "abc";A=1',
    "an unfinished parameter": f'{HEADER}: "abc";a=',
    "two words": f"{HEADER}: a b",
    "a list": f"{HEADER}: a, b",
    "a list without a blank": f"{HEADER}: a,b",
    "a list of quoted keys": f'{HEADER}: "a", "b"',
    "a list of the same key": f'{HEADER}: "a", "a"',
}


def counting(runs: Runs) -> Callable[[], Any]:
    return lambda: ({"run": runs()}, 201)


@pytest.mark.parametrize(("first", "second"), SAME_KEY)
def test_two_spellings_are_one_key(guarded: Callable[..., Server], runs: Runs, first: str, second: str) -> None:
    server = guarded(counting(runs))
    answer = server.raw(f"{HEADER}: {first}")
    assert_original(answer)
    assert_replay(server.raw(f"{HEADER}: {second}"), answer)
    assert runs.count == 1


@pytest.mark.parametrize(("first", "second"), OTHER_KEY)
def test_two_keys_are_two_requests(guarded: Callable[..., Server], runs: Runs, first: str, second: str) -> None:
    server = guarded(counting(runs))
    for key in (first, second):
        assert_original(server.raw(f"{HEADER}: {key}"))
    assert runs.count == 2


@pytest.mark.parametrize("name", ["idempotency-key", "IDEMPOTENCY-KEY", "iDeMpOtEnCy-KeY"])
def test_the_name_of_the_field_is_case_insensitive(guarded: Callable[..., Server], runs: Runs, name: str) -> None:
    server = guarded(counting(runs))
    answer = server.raw(f"{HEADER}: k")
    assert_replay(server.raw(f"{name}: k"), answer)
    assert runs.count == 1


@pytest.mark.parametrize("line", INVALID.values(), ids=INVALID.keys())
def test_an_invalid_key_gets_400_and_the_view_does_not_run(
    guarded: Callable[..., Server], runs: Runs, line: str | bytes
) -> None:
    problem = assert_problem(guarded(counting(runs)).raw(line), "key-invalid")
    assert problem["retryable"] is False
    assert runs.count == 0


@pytest.mark.parametrize("line", [f"{HEADER}:", f"{HEADER}: a b", f"{HEADER}: a, b"])
def test_where_a_key_is_required_an_invalid_one_is_not_taken_for_a_missing_one(
    guarded: Callable[..., Server], runs: Runs, line: str
) -> None:
    assert_problem(guarded(counting(runs), required=True).raw(line), "key-invalid")
    assert runs.count == 0


@pytest.mark.parametrize("values", [("a", "b"), ("a", "a"), ('"a"', '"b"'), ("a", ""), ("", "a")])
def test_two_header_lines_get_400(guarded: Callable[..., Server], runs: Runs, values: tuple[str, str]) -> None:
    server = guarded(counting(runs))
    assert_problem(server.raw(*(f"{HEADER}: {value}" for value in values)), "key-invalid")
    assert runs.count == 0


@pytest.mark.parametrize(
    "key", ["k" * 255, f'"{"k" * 255}"', f'"{"k" * 253}{chr(92)}"k"'], ids=["bare", "quoted", "escaped"]
)
def test_a_key_of_255_bytes_is_taken(guarded: Callable[..., Server], runs: Runs, key: str) -> None:
    server = guarded(counting(runs))
    answer = server.raw(f"{HEADER}: {key}")
    assert_original(answer)
    assert_replay(server.raw(f"{HEADER}: {key}"), answer)


def test_the_longest_key_is_a_setting(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), max_key_length=8)
    assert_original(server.post(key="k" * 8))
    assert_problem(server.post(key="k" * 9), "key-invalid")


def test_the_answer_to_an_invalid_key_does_not_repeat_it(guarded: Callable[..., Server], runs: Runs) -> None:
    answer = guarded(counting(runs)).raw(f"{HEADER}: <script>, tell-tale")
    assert_problem(answer, "key-invalid")
    assert "script" not in answer.text
    assert "tell-tale" not in answer.text


def test_without_a_key_the_view_runs_each_time(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs))
    for _ in range(3):
        assert_original(server.post())
    assert runs.count == 3


@pytest.mark.parametrize("how", ["route", "setting"])
def test_without_a_key_a_route_that_requires_one_answers_400(
    guarded: Callable[..., Server], runs: Runs, how: str
) -> None:
    server = guarded(counting(runs), required=True) if how == "route" else guarded(counting(runs), {"required": True})
    assert assert_problem(server.post(), "key-missing")["retryable"] is False
    assert runs.count == 0
    assert_original(server.post(key="k"))


def test_a_route_may_do_without_the_key_that_the_app_requires(guarded: Callable[..., Server], runs: Runs) -> None:
    assert_original(guarded(counting(runs), {"required": True}, required=False).post())


def test_the_header_has_another_name_where_the_settings_say_so(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), {"header": "X-Request-Token", "replay_header": "X-Repeated"})
    for _ in range(2):
        answer = server.post(headers={"X-Request-Token": "k"})
    assert answer.headers["X-Repeated"] == "true"
    server.post(key="k")
    assert runs.count == 2  # one for the token, one for the request without it


def test_a_key_that_the_route_reads_itself_replaces_the_header(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), key=lambda request: request.args.get("token"))
    answer = server.post("/?token=t", key="a")
    assert_replay(server.post("/?token=t", key="b"), answer)
    assert_original(server.post(key="a"))
    assert runs.count == 2


# --- Forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_a_form_carries_its_key_in_a_hidden_field(guarded: Callable[..., Server], runs: Runs, kind: str) -> None:
    def fields(key: str) -> dict[str, Any]:
        named = {"item": "mug", "idempotency_key": key}
        return (
            {"data": named} if kind == "urlencoded" else {"files": {name: (None, text) for name, text in named.items()}}
        )

    server = guarded(counting(runs))
    answer = server.post(**fields("f-1"))
    assert_original(answer)
    assert_replay(server.post(**fields("f-1")), answer)
    assert_original(server.post(**fields("f-2")))
    assert runs.count == 2


@pytest.mark.parametrize("kind", ["urlencoded", "multipart"])
def test_the_header_wins_over_the_field_which_is_no_part_of_the_fingerprint(
    guarded: Callable[..., Server], runs: Runs, kind: str
) -> None:
    def fields(key: str) -> dict[str, Any]:
        named = {"item": "mug", "idempotency_key": key}
        return (
            {"data": named} if kind == "urlencoded" else {"files": {name: (None, text) for name, text in named.items()}}
        )

    server = guarded(counting(runs))
    answer = server.post(key="h", **fields("f-1"))
    assert_replay(server.post(key="h", **fields("f-2")), answer)
    assert_original(server.post(key="g", **fields("f-1")))
    assert_original(server.post(**fields("f-1")))
    assert runs.count == 3


def test_an_invalid_header_is_not_made_good_by_a_field(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs))
    assert_problem(server.post(key="a b", data={"idempotency_key": "k"}), "key-invalid")
    assert runs.count == 0


INVALID_IN_A_FORM = [
    "a&idempotency_key=b",
    "a&idempotency_key=a",
    "a&idempotency_key=",
    "a%2Cb",
    "a%00b",
    "",
    "+",
    "%C3%A9",
]


@pytest.mark.parametrize("value", INVALID_IN_A_FORM)
def test_an_invalid_key_in_a_form_gets_400(guarded: Callable[..., Server], runs: Runs, value: str) -> None:
    server = guarded(counting(runs))
    answer = server.post(data=f"item=mug&idempotency_key={value}", headers={"Content-Type": FORM})
    assert_problem(answer, "key-invalid")
    assert runs.count == 0


@pytest.mark.parametrize("where", ["/?idempotency_key=k", "json"])
def test_a_key_in_the_query_or_in_json_is_none(guarded: Callable[..., Server], runs: Runs, where: str) -> None:
    server = guarded(counting(runs))
    for _ in range(2):
        answer = server.post(json={"idempotency_key": "k"}) if where == "json" else server.post(where)
        assert_original(answer)
    assert runs.count == 2


def test_the_form_field_has_another_name_where_the_settings_say_so(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), {"form_field": "_once"})
    answer = server.post(data={"_once": "k"})
    assert_replay(server.post(data={"_once": "k"}), answer)


@pytest.mark.parametrize("settings", [{}, {"form_field": "_once"}])
def test_a_template_renders_the_hidden_field(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs, settings: dict[str, str]
) -> None:
    app = make_app(**settings)
    app.get("/form", endpoint="show")(
        lambda: render_template_string("<form method=post>{{ idempotency_field() }}</form>")
    )
    app.post("/form")(idempotent(counting(runs)))
    name = settings.get("form_field", "idempotency_key")
    server = serve(app)
    pages = [server.request("GET", "/form").text for _ in range(2)]
    fields = [_hidden_field(page) for page in pages]
    assert [field["name"] for field in fields] == [name, name]
    assert fields[0]["value"] != fields[1]["value"], "each rendering is a new intent"
    answers = [server.post("/form", data={name: fields[0]["value"], "item": "mug"}) for _ in range(2)]
    assert_replay(answers[1], answers[0])
    assert runs.count == 1


def _hidden_field(page: str) -> dict[str, str]:
    from html.parser import HTMLParser

    found: list[dict[str, str]] = []

    class Inputs(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag == "input":
                found.append({name: value or "" for name, value in attrs})

    Inputs().feed(page)
    assert len(found) == 1, page
    assert found[0]["type"] == "hidden"
    return found[0]


# --- Methods ------------------------------------------------------------------------------------------------------


def everything(make_app: Callable[..., Flask], runs: Runs, **options: Any) -> Flask:
    app = make_app()
    methods = ["GET", "HEAD", "OPTIONS", "POST", "PATCH", "PUT", "DELETE"]

    @app.route("/", methods=methods, provide_automatic_options=False)
    @idempotent(**options)
    def view() -> Any:
        return {"run": runs(), "method": request.method}

    return app


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_post_and_patch_are_guarded(make_app: Any, serve: Any, runs: Runs, method: str) -> None:
    server = serve(everything(make_app, runs))
    answer = server.request(method, key="k")
    assert_replay(server.request(method, key="k"), answer)
    assert runs.count == 1


@pytest.mark.parametrize("line", [f"{HEADER}: k", f"{HEADER}: a, b", f"{HEADER}:"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_other_methods_pass_through_whatever_they_carry(
    make_app: Any, serve: Any, runs: Runs, method: str, line: str
) -> None:
    server = serve(everything(make_app, runs, required=True))
    for _ in range(2):
        assert_original(server.raw(line, method=method), 200)
    assert runs.count == 2


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_put_and_delete_are_guarded_where_the_settings_name_them(
    make_app: Any, serve: Any, runs: Runs, method: str
) -> None:
    server = serve(everything(make_app, runs, methods=["PUT", "DELETE"]))
    answer = server.request(method, key="k")
    assert_replay(server.request(method, key="k"), answer)
    server.post(key="k")
    server.post(key="k")
    assert runs.count == 3, "POST is no longer named"
