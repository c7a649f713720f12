"""The fingerprint: what makes two requests the same request, and that reading it leaves the request as it was."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Request, Response, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import FileStorage

from flask_idempotent import Idempotency, idempotent

from .conftest import Runs, Server, assert_original, assert_problem, assert_replay

JSON, FORM, TEXT, BINARY = (
    "application/json",
    "application/x-www-form-urlencoded",
    "text/plain",
    "application/octet-stream",
)


def multipart(*parts: str | tuple[str, str, str, bytes], boundary: str = "b", end: bool = True) -> tuple[bytes, str]:
    """Fields as ``name=value``, files as (field, file name, type, bytes); the body and its content type."""
    lines = []
    for part in parts:
        lines.append(f"--{boundary}\r\n".encode())
        if isinstance(part, str):
            name, _, value = part.partition("=")
            lines.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
        else:
            field, filename, kind, data = part
            lines.append(
                f'Content-Disposition: form-data; name="{field}"; filename="{filename}"\r\n'
                f"Content-Type: {kind}\r\n\r\n".encode()
            )
            lines += [data, b"\r\n"]
    if end:
        lines.append(f"--{boundary}--\r\n".encode())
    return b"".join(lines), f"multipart/form-data; boundary={boundary}"


CAT = ("photo", "cat.png", "image/png", bytes(range(256)) * 8)

# Content type, body and query of the first request, and of the second.
Sent = tuple[str | None, bytes, str]
SAME: dict[str, tuple[Sent, Sent]] = {
    "nothing": ((None, b"", ""), (None, b"", "")),
    "members in another order": ((JSON, b'{"a":1,"b":2}', ""), (JSON, b'{"b":2,"a":1}', "")),
    "members in another order, deep": ((JSON, b'[{"a":{"x":1,"y":2}}]', ""), (JSON, b'[{"a":{"y":2,"x":1}}]', "")),
    "white space": ((JSON, b'{"a":[1,2]}', ""), (JSON, b' {\n\t"a" : [1 ,2 ]}\r\n', "")),
    "escapes": ((JSON, b'{"\\u0061":"\\u00e9"}', ""), (JSON, '{"a":"é"}'.encode(), "")),
    "charset": ((JSON, b'{"a":1}', ""), (f"{JSON}; charset=utf-8", b'{"a":1}', "")),
    "case of the content type": ((JSON, b'{"a":1}', ""), ("Application/JSON", b'{"a":1}', "")),
    "JSON of another media type": (
        ("application/merge-patch+json", b'{"a":1,"b":2}', ""),
        ("application/merge-patch+json", b'{"b":2, "a":1}', ""),
    ),
    "numbers written differently": ((JSON, b'{"a":1.50}', ""), (JSON, b'{"a":15e-1}', "")),
    "csrf_token in JSON": ((JSON, b'{"a":1,"csrf_token":"x"}', ""), (JSON, b'{"a":1,"csrf_token":"y"}', "")),
    "csrf_token in JSON or not": ((JSON, b'{"a":1,"csrf_token":"x"}', ""), (JSON, b'{"a":1}', "")),
    "query in another order": ((None, b"", "?a=1&b=2"), (None, b"", "?b=2&a=1")),
    "query spelt differently": ((None, b"", "?a=%41%20b"), (None, b"", "?a=A+b")),
    "form in another order": ((FORM, b"a=1&b=2", ""), (FORM, b"b=2&a=1", "")),
    "form spelt differently": ((FORM, b"a=%41+b", ""), (FORM, b"a=A%20b", "")),
    "csrf_token in a form": ((FORM, b"a=1&csrf_token=x", ""), (FORM, b"csrf_token=y&a=1", "")),
    "form with a charset": ((FORM, b"a=1", ""), (f"{FORM};charset=utf-8", b"a=1", "")),
    "multipart with another boundary": (
        (*reversed(multipart("a=1", CAT, boundary="one")), ""),
        (*reversed(multipart("a=1", CAT, boundary="another-one")), ""),
    ),
    "multipart fields in another order": (
        (*reversed(multipart("a=1", CAT, "b=2")), ""),
        (*reversed(multipart("b=2", "a=1", CAT)), ""),
    ),
    "csrf_token in multipart": (
        (*reversed(multipart("a=1", "csrf_token=x")), ""),
        (*reversed(multipart("a=1", "csrf_token=y")), ""),
    ),
    "raw": ((BINARY, b"\x00\xff", ""), (BINARY, b"\x00\xff", "")),
    "malformed JSON": ((JSON, b'{"a":', ""), (JSON, b'{"a":', "")),
    "empty JSON": ((JSON, b"", ""), (JSON, b"", "")),
}
OTHER: dict[str, tuple[Sent, Sent]] = {
    "value": ((JSON, b'{"a":1}', ""), (JSON, b'{"a":2}', "")),
    "order of an array": ((JSON, b"[1,2]", ""), (JSON, b"[2,1]", "")),
    "true is not 1": ((JSON, b'{"a":true}', ""), (JSON, b'{"a":1}', "")),
    "false is not 0": ((JSON, b"[false]", ""), (JSON, b"[0]", "")),
    "null is not absent": ((JSON, b'{"a":null}', ""), (JSON, b"{}", "")),
    "a string is not a number": ((JSON, b'{"a":"1"}', ""), (JSON, b'{"a":1}', "")),
    "the last digit of a large integer": ((JSON, b"[9007199254740993]", ""), (JSON, b"[9007199254740992]", "")),
    "the last digit of a fraction": ((JSON, b"[0.1]", ""), (JSON, b"[0.10000000000000001]", "")),
    "a number beyond a float": ((JSON, b"[1e400]", ""), (JSON, b"[1e401]", "")),
    "a duplicate member": ((JSON, b'{"a":1,"a":2}', ""), (JSON, b'{"a":2}', "")),
    "the first of duplicate members": ((JSON, b'{"a":1,"a":2}', ""), (JSON, b'{"a":3,"a":2}', "")),
    "a nested csrf_token": ((JSON, b'{"a":{"csrf_token":1}}', ""), (JSON, b'{"a":{"csrf_token":2}}', "")),
    "malformed JSON": ((JSON, b'{"a":', ""), (JSON, b'{"a": ', "")),
    "NaN": ((JSON, b"[NaN]", ""), (JSON, b"[ NaN]", "")),
    "a NUL in a string": ((JSON, b'["\\u0000a"]', ""), (JSON, b'["a"]', "")),
    "an empty object is not nothing": ((JSON, b"{}", ""), (JSON, b"", "")),
    "an empty array is not an empty object": ((JSON, b"[]", ""), (JSON, b"{}", "")),
    "content type": ((JSON, b'{"a":1}', ""), (TEXT, b'{"a":1}', "")),
    "content type of raw bytes": ((TEXT, b"a", ""), (BINARY, b"a", "")),
    "query": ((None, b"", "?a=1"), (None, b"", "?a=2")),
    "query or none": ((None, b"", "?a=1"), (None, b"", "")),
    "query values in another order": ((None, b"", "?a=1&a=2&b=3"), (None, b"", "?a=1&a=3&b=2")),
    "query is not body": ((FORM, b"a=1", ""), (FORM, b"", "?a=1")),
    "a form field": ((FORM, b"a=1", ""), (FORM, b"a=2", "")),
    "a form field twice": ((FORM, b"a=1", ""), (FORM, b"a=1&a=1", "")),
    "the values of one field in another order": ((FORM, b"a=1&a=2", ""), (FORM, b"a=2&a=1", "")),
    "the values of one query name in another order": ((None, b"", "?a=1&a=2"), (None, b"", "?a=2&a=1")),
    "the rows of a form": ((FORM, b"id=1&n=2&id=2&n=1", ""), (FORM, b"id=1&n=1&id=2&n=2", "")),
    "a border within a form": ((FORM, b"a=1&b=2", ""), (FORM, b"a=1%26b%3D2", "")),
    "an empty form field": ((FORM, b"a=", ""), (FORM, b"", "")),
    "a multipart field": ((*reversed(multipart("a=1", CAT)), ""), (*reversed(multipart("a=2", CAT)), "")),
    "a file's bytes": (
        (*reversed(multipart(CAT)), ""),
        (*reversed(multipart(("photo", "cat.png", "image/png", bytes(range(256)) * 7 + bytes(256)))), ""),
    ),
    "a file's name": (
        (*reversed(multipart(CAT)), ""),
        (*reversed(multipart(("photo", "dog.png", "image/png", CAT[3]))), ""),
    ),
    "a file's field": (
        (*reversed(multipart(CAT)), ""),
        (*reversed(multipart(("image", "cat.png", "image/png", CAT[3]))), ""),
    ),
    "a field is not a file": (
        (*reversed(multipart("a=1")), ""),
        (*reversed(multipart(("a", "", TEXT, b"1"))), ""),
    ),
    "swapped files": (
        (*reversed(multipart(("a", "f", TEXT, b"1"), ("b", "f", TEXT, b"2"))), ""),
        (*reversed(multipart(("a", "f", TEXT, b"2"), ("b", "f", TEXT, b"1"))), ""),
    ),
    "a broken multipart body": (
        ("multipart/form-data", b"--b\r\nnonsense", ""),
        ("multipart/form-data", b"--b\r\nnonsense!", ""),
    ),
    "one byte": ((BINARY, b"\x00\xff", ""), (BINARY, b"\x00\xfe", "")),
    "a newline": ((TEXT, b"a", ""), (TEXT, b"a\n", "")),
    "white space in text": ((TEXT, b'{"a":1}', ""), (TEXT, b'{"a": 1}', "")),
    "the last byte of a large body": ((BINARY, bytes(2_000_000), ""), (BINARY, bytes(1_999_999) + b"\x01", "")),
    "the content type is not the body": ((TEXT, b"", ""), (None, b"", "")),
}


def send(server: Server, sent: Sent, key: str = "k", **options: Any) -> Any:
    kind, body, query = sent
    return server.post(f"/{query}", key=key, data=body, headers={"Content-Type": kind} if kind else {}, **options)


def counting(runs: Runs) -> Callable[[], Any]:
    return lambda: ({"run": runs()}, 201)


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME.keys())
def test_what_does_not_count_is_the_same_request(
    guarded: Callable[..., Server], runs: Runs, first: Sent, second: Sent
) -> None:
    server = guarded(counting(runs))
    answer = send(server, first)
    assert_original(answer)
    assert_replay(send(server, second), answer)
    assert runs.count == 1


@pytest.mark.parametrize(("first", "second"), OTHER.values(), ids=OTHER.keys())
def test_what_counts_makes_another_request_and_leaves_the_record_as_it_was(
    guarded: Callable[..., Server], runs: Runs, first: Sent, second: Sent
) -> None:
    server = guarded(counting(runs))
    answer = send(server, first)
    assert_original(answer)
    for _ in range(2):
        assert assert_problem(send(server, second), "key-reused")["retryable"] is False
    assert_replay(send(server, first), answer)
    assert runs.count == 1
    assert_original(send(server, second, key="another"))


def test_the_same_body_under_another_key_is_another_request(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs))
    for number in range(3):
        assert_original(server.post(key=f"k-{number}", json={"a": 1}))
    assert runs.count == 3


def test_a_chunked_body_is_the_same_as_one_with_a_length(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs))
    for number, (kind, body) in enumerate([(JSON, b'{"a": [1, 2]}'), (FORM, b"a=1&b=2"), (BINARY, bytes(100_000))]):
        answer = send(server, (kind, body, ""), key=f"k-{number}")
        chunked = server.post(key=f"k-{number}", data=iter([body[:5], body[5:]]), headers={"Content-Type": kind})
        assert_replay(chunked, answer)


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match", "If-Unmodified-Since", "Range"])
def test_a_condition_makes_another_request(guarded: Callable[..., Server], runs: Runs, name: str) -> None:
    """What was answered to a condition, or to a part, is not replayed to a request without it."""
    server = guarded(lambda: ({"run": runs(), "condition": request.headers.get(name)}, 200))
    answer = server.post(key="k", headers={name: "one"})
    assert_original(answer, 200)
    assert_problem(server.post(key="k", headers={name: "two"}), "key-reused")
    assert_problem(server.post(key="k"), "key-reused")
    assert_replay(server.post(key="k", headers={name: "one", "X-Other": "1"}), answer)
    assert runs.count == 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b"[" + b"9" * 50_000 + b"]",
        b"[1e999999999999]",
        b"[1E-99999999999999999999]",
        b"[0." + b"3" * 200_000 + b"]",
        b'"\xff\xfe"',
        b'"\\ud800"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"[" + b"0," * 200_000 + b"0]",
    ],
    ids=lambda body: f"{body[:12]!r}-{len(body)}",
)
def test_json_that_is_hard_to_read_neither_breaks_nor_slows_the_guard(
    guarded: Callable[..., Server], runs: Runs, body: bytes
) -> None:
    server = guarded(counting(runs))
    answer = send(server, (JSON, body, ""), timeout=5)
    assert_original(answer)
    assert_replay(send(server, (JSON, body, ""), timeout=5), answer)
    assert_problem(send(server, (JSON, body + b"x", ""), timeout=5), "key-reused")
    assert runs.count == 1


def test_the_ignored_fields_are_a_setting(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), ignored_fields={"nonce", "sent_at"})
    answer = server.post(key="j", json={"a": 1, "nonce": "x", "sent_at": 1})
    assert_replay(server.post(key="j", json={"a": 1, "nonce": "y"}), answer)
    assert_problem(server.post(key="j", json={"a": 1, "csrf_token": "y"}), "key-reused")
    answer = server.post(key="f", data={"a": 1, "nonce": "x"})
    assert_replay(server.post(key="f", data={"a": 1, "sent_at": "y"}), answer)


def test_a_route_may_say_itself_what_counts(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), fingerprint=lambda request: request.get_json()["order"])
    answer = server.post(key="k", json={"order": "1", "seen": "x"})
    assert_replay(server.post(key="k", json={"order": "1", "seen": "y"}), answer)
    assert_problem(server.post(key="k", json={"order": "2", "seen": "x"}), "key-reused")
    assert runs.count == 1


def test_a_route_may_say_that_nothing_counts(guarded: Callable[..., Server], runs: Runs) -> None:
    server = guarded(counting(runs), fingerprint=None)
    answer = server.post(key="k", json={"a": 1})
    assert_replay(server.post("/?q=1", key="k", data=b"raw"), answer)
    assert runs.count == 1


# --- The view finds its request as if nobody had read it -----------------------------------------------------------


def digest(data: bytes) -> Any:
    return data.decode("latin-1") if len(data) < 100 else [len(data), hashlib.sha256(data).hexdigest()]


def file_facts(file: FileStorage) -> Any:
    position = file.stream.tell()
    facts = [file.name, file.filename, file.content_type, file.mimetype, file.content_length, sorted(file.headers)]
    return [*facts, position, digest(file.read())]


def chunks_of(stream: Any, size: int) -> Iterator[bytes]:
    while chunk := stream.read(size):
        yield chunk


def json_facts(value: Any) -> Any:
    return digest(json.dumps(value).encode())


def form_facts() -> Any:
    return [(name, digest(value.encode())) for name, value in request.form.items(multi=True)]


def files_facts() -> Any:
    return [file_facts(file) for _, file in request.files.items(multi=True)]


def save_files() -> Any:
    saved = []
    for _, file in request.files.items(multi=True):
        target = io.BytesIO()
        file.save(target)
        saved.append(digest(target.getvalue()))
    return saved


PROBES: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "get_data": lambda: digest(request.get_data()),
    "get_data twice": lambda: [digest(request.get_data()), digest(request.get_data())],
    "get_data uncached": lambda: digest(request.get_data(cache=False)),
    "get_data as text": lambda: request.get_data(as_text=True)[:100],
    "get_data with parsing": lambda: [digest(request.get_data(parse_form_data=True)), form_facts()],
    "data": lambda: digest(request.data),
    "json": lambda: json_facts(request.json),
    "get_json silent": lambda: json_facts(request.get_json(silent=True)),
    "get_json forced": lambda: json_facts(request.get_json(force=True)),
    "get_json, then get_data": lambda: [json_facts(request.get_json(silent=True)), digest(request.get_data())],
    "form": form_facts,
    "files": files_facts,
    "form, then files": lambda: [form_facts(), files_facts()],
    "files, then form": lambda: [files_facts(), form_facts()],
    "saved files": save_files,
    "values": lambda: [(name, digest(value.encode())) for name, value in request.values.items(multi=True)],
    "stream": lambda: digest(request.stream.read()),
    "stream by 7": lambda: digest(b"".join(chunks_of(request.stream, 7_001))),
    "stream by lines": lambda: digest(b"".join(iter(request.stream.readline, b""))),
    "stream iterated": lambda: digest(b"".join(request.stream)),
    "stream, then its end": lambda: [digest(request.stream.read()), digest(request.stream.read())],
    "start of the stream, then get_data": lambda: [digest(request.stream.read(3)), digest(request.get_data())],
    "wsgi.input": lambda: digest(request.environ["wsgi.input"].read(request.content_length or 0)),
    "wsgi.input to its end": lambda: (
        digest(request.environ["wsgi.input"].read()) if "Transfer-Encoding" in request.headers else None
    ),
    "get_data, then form": lambda: [digest(request.get_data()), form_facts()],
    "get_data, then files": lambda: [digest(request.get_data()), files_facts()],
    "stream, then form": lambda: [digest(request.stream.read()), form_facts(), files_facts()],
    "facts": lambda: [
        request.content_length,
        request.content_type,
        request.mimetype,
        request.mimetype_params,
        request.is_json,
        request.want_form_data_parsed,
        list(request.args.items()),
        request.headers.get("Transfer-Encoding"),
    ],
}
BIG = bytes(range(256)) * 8192  # 2 MiB
BODIES: dict[str, tuple[str | None, bytes]] = {
    "nothing": (None, b""),
    "bytes without a type": (None, b"abc"),
    "JSON": (JSON, b'{"a": [1, 2.5, null]}'),
    "JSON with a charset": (f"{JSON}; charset=utf-8", '{"a": "é"}'.encode()),
    "JSON null": (JSON, b"null"),
    "empty JSON": (JSON, b""),
    "malformed JSON": (JSON, b'{"a": '),
    "JSON of another media type": ("application/merge-patch+json", b'{"a": 1}'),
    "2 MiB of JSON": (JSON, json.dumps({"a": "x" * 2_097_152}).encode()),
    "form": (FORM, b"a=1&b=2&a=3&empty=&csrf_token=t"),
    "empty form": (FORM, b""),
    "form that is not UTF-8": (FORM, b"a=%ff%fe&b=\xff"),
    "400 kB of form": (FORM, b"a=" + b"x" * 400_000),
    "multipart fields": multipart("a=1", "a=2", "b=é")[::-1],
    "multipart file": multipart("a=1", CAT)[::-1],
    "multipart files of one field": multipart(CAT, ("photo", "é.txt", TEXT, b"2"), ("other", "", TEXT, b""))[::-1],
    "2 MiB of multipart": multipart("a=1", ("f", "big.bin", BINARY, BIG), ("g", "big.txt", TEXT, BIG[:600_000]))[::-1],
    "multipart with 200 files": multipart(*(("f", f"{n}", TEXT, b"%d" % n) for n in range(200)))[::-1],
    "truncated multipart": multipart("a=1", CAT, end=False)[::-1],
    "multipart without a boundary": ("multipart/form-data", multipart("a=1")[0]),
    "empty multipart": ("multipart/form-data; boundary=b", b""),
    "text": (TEXT, "a\nb\r\nc é".encode()),
    "octets": (BINARY, bytes(range(256))),
    "2 MiB of octets": (BINARY, BIG),
}
FOR_LARGE_BODIES = {
    "get_data",
    "get_json silent",
    "form, then files",
    "saved files",
    "stream by 7",
    "wsgi.input to its end",
}


class InMemoryRequest(Request):
    """Werkzeug does not close the temporary files of a form that it gives up half way."""

    def _get_file_stream(self, *args: Any, **kwargs: Any) -> io.BytesIO:
        return io.BytesIO()


@pytest.fixture
def twins(bare_app: Callable[..., Flask], serve: Callable[..., Server]) -> Callable[..., Server]:
    """Serves one view twice, at /plain and, guarded, at /guarded."""

    def start(view: Callable[..., Any], request_class: type[Request] = Request, **config: Any) -> Server:
        app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache", **config)
        app.request_class = request_class
        Idempotency(app)
        app.post("/plain/<name>", endpoint="plain")(lambda name: view(name))
        app.post("/guarded/<name>", endpoint="guarded")(idempotent(required=True)(lambda name: view(name)))
        return serve(app)

    return start


def probe(name: str) -> ResponseReturnValue:
    return {"found": PROBES[name]()}


def ask(server: Server, twin: str, name: str, kind: str | None, body: Any, key: str | None) -> tuple[int, Any]:
    headers = {"Content-Type": kind} if kind else {}
    answer = server.post(f"/{twin}/{name}?q=1", key=key, data=body, headers=headers)
    return answer.status_code, answer.json() if answer.ok else answer.text


CHUNKED = (
    "nothing",
    "JSON",
    "2 MiB of JSON",
    "form",
    "multipart file",
    "2 MiB of multipart",
    "truncated multipart",
    "octets",
    "text",
)
TWINS = [
    pytest.param(kind, body, framing, id=f"{name}-{framing}")
    for name, (kind, body) in BODIES.items()
    for framing in ("whole", "chunked")
    if framing == "whole" or name in CHUNKED
]


@pytest.mark.parametrize(("kind", "body", "framing"), TWINS)
def test_the_view_finds_its_request_as_without_the_guard(
    twins: Callable[..., Server], kind: str | None, body: bytes, framing: str
) -> None:
    server = twins(probe, InMemoryRequest if b"--b--" not in body else Request)

    def found(name: str) -> tuple[Any, Any]:
        def payload() -> Any:
            return body if framing == "whole" else iter([body[:1], body[1:70_000], body[70_000:]])

        plain = ask(server, "plain", name, kind, payload(), None)
        guarded = ask(server, "guarded", name, kind, payload(), f'"{name}"')
        return plain, guarded

    names = [name for name in PROBES if len(body) < 100_000 or name in FOR_LARGE_BODIES]
    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(names, pool.map(found, names), strict=True))
    assert {name: guarded for name, (_, guarded) in answers.items()} == {
        name: plain for name, (plain, _) in answers.items()
    }


LIMITS: dict[str, tuple[dict[str, int], str, tuple[str, bytes], int | None]] = {
    "JSON": ({"MAX_CONTENT_LENGTH": 1000}, "get_data", (JSON, json.dumps("x" * 2000).encode()), 413),
    "JSON at the limit": ({"MAX_CONTENT_LENGTH": 1000}, "get_data", (JSON, json.dumps("x" * 998).encode()), 200),
    "one byte over": ({"MAX_CONTENT_LENGTH": 1000}, "get_data", (JSON, json.dumps("x" * 999).encode()), 413),
    "form": ({"MAX_CONTENT_LENGTH": 1000}, "form", (FORM, b"a=" + b"x" * 2000), 413),
    "multipart": ({"MAX_CONTENT_LENGTH": 1000}, "files", multipart(CAT)[::-1], 413),
    "octets": ({"MAX_CONTENT_LENGTH": 1000}, "stream", (BINARY, bytes(2000)), 413),
    "octets at the limit": ({"MAX_CONTENT_LENGTH": 1000}, "stream", (BINARY, bytes(1000)), 200),
    "2 MiB of octets": ({"MAX_CONTENT_LENGTH": 1000}, "stream", (BINARY, BIG), 413),
    "a form is no form memory": ({"MAX_FORM_MEMORY_SIZE": 1000}, "form", (FORM, b"a=" + b"x" * 2000), None),
    "multipart memory": ({"MAX_FORM_MEMORY_SIZE": 1000}, "form", multipart("a=" + "x" * 2000)[::-1], 413),
    "a large file is no form memory": (
        {"MAX_FORM_MEMORY_SIZE": 100_000},
        "files",
        multipart(("f", "f", BINARY, BIG))[::-1],
        200,
    ),
    "multipart parts": ({"MAX_FORM_PARTS": 3}, "form", multipart("a=1", "b=2", "c=3", "d=4")[::-1], 413),
}


@pytest.mark.parametrize(("limits", "name", "sent", "status"), LIMITS.values(), ids=LIMITS.keys())
def test_a_body_over_the_limits_of_the_app_gets_413_as_without_the_guard(
    twins: Callable[..., Server], limits: dict[str, int], name: str, sent: tuple[str, bytes], status: int | None
) -> None:
    server = twins(probe, InMemoryRequest, **limits)
    plain, guarded = (ask(server, twin, name, *sent, key="k") for twin in ("plain", "guarded"))
    assert plain[0] == status or status is None  # None: releases of Werkzeug differ
    assert guarded == plain


@pytest.mark.parametrize(("limits", "name", "sent", "status"), LIMITS.values(), ids=LIMITS.keys())
def test_the_limits_of_the_app_hold_for_chunked_bodies(
    twins: Callable[..., Server], limits: dict[str, int], name: str, sent: tuple[str, bytes], status: int | None
) -> None:
    """Werkzeug cuts some of them off at the limit and says nothing; the guard may not let more through than that."""
    server = twins(probe, InMemoryRequest, **limits)
    kind, body = sent
    plain, guarded = (ask(server, twin, name, kind, iter([body[:10], body[10:]]), "k") for twin in ("plain", "guarded"))
    assert guarded == plain or guarded[0] == status == 413


def test_a_body_over_the_limit_leaves_its_key_free(guarded: Callable[..., Server], runs: Runs) -> None:
    def view() -> Any:
        return {"run": runs()}, 201

    server = guarded(view, {}, required=True)
    server.app.config["MAX_CONTENT_LENGTH"] = 10
    assert server.post(key="k", data=bytes(100)).status_code == 413
    assert_original(server.post(key="k", data=bytes(10)))
    assert runs.count == 1


@pytest.mark.parametrize("kind", [BINARY, JSON, TEXT])
def test_a_view_may_stream_its_request_back_to_the_client(twins: Callable[..., Server], kind: str) -> None:
    """The stream is read while the answer is sent, when the request's context has gone."""

    def echo(name: str) -> Response:
        return Response(chunks_of(request.stream, 10_000), mimetype=BINARY)

    server = twins(echo)
    body = json.dumps("x" * 1_000_000).encode()
    answers = [
        server.post(f"/{twin}/echo", key="k", data=body, headers={"Content-Type": kind})
        for twin in ("plain", "guarded")
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == body
    assert answers[1].content == body


# --- Hooks that read the request before the guard does --------------------------------------------------------------

# Content type, a body, and another body.
KINDS: dict[str, tuple[str, bytes, bytes]] = {
    "JSON": (JSON, b'{"a":1,"b":2}', b'{"a":1,"b":3}'),
    "form": (FORM, b"a=1&b=2", b"a=1&b=3"),
    "multipart": (multipart()[1], multipart("a=1", CAT)[0], multipart("a=1", (*CAT[:3], CAT[3] + b"x"))[0]),
    "octets": (BINARY, bytes(1000), bytes(999) + b"x"),
}
READERS = ["get_data", "data", "form", "files", "values", "get_json", "get_data, then form", "files, then form"]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("kind", "body", "other"), KINDS.values(), ids=KINDS.keys())
def test_a_body_that_a_hook_has_read_still_counts(
    bare_app: Callable[..., Flask],
    serve: Callable[..., Server],
    runs: Runs,
    kind: str,
    body: bytes,
    other: bytes,
    reader: str,
) -> None:
    """CSRF protection reads the form of every request, and loggers read the bytes, before the view is called."""
    app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache")
    Idempotency(app)
    app.before_request(lambda: hook(reader))
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    answer = send(server, (kind, body, ""))
    assert_original(answer)
    assert_problem(send(server, (kind, other, "")), "key-reused")
    assert_replay(send(server, (kind, body, "")), answer)
    assert runs.count == 1


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("kind", "body", "other"), KINDS.values(), ids=KINDS.keys())
def test_behind_a_hook_the_view_finds_its_request_as_without_the_guard(
    twins: Callable[..., Server], kind: str, body: bytes, other: bytes, reader: str
) -> None:
    server = twins(probe)
    server.app.before_request(lambda: hook(reader))
    for name in ("get_data", "form, then files", "get_json silent", "stream", "data"):
        plain, guarded = (
            ask(server, twin, name, kind, body, name.replace(" ", "-").replace(",", ""))
            for twin in ("plain", "guarded")
        )
        assert guarded == plain, name


# What a hook does must not move the files that the view finds.
HOOKS: dict[str, Callable[[], Any]] = {
    "get_data": lambda: request.get_data(),
    "data": lambda: request.data,
    "form": lambda: request.form,
    "files": lambda: request.files,
    "values": lambda: request.values,
    "get_json": lambda: request.get_json(silent=True),
    "get_data, then form": lambda: [request.get_data(), request.form],
    "files, then form": lambda: [request.files, request.form],
}


def hook(reader: str) -> None:
    HOOKS[reader]()


def test_a_limit_that_is_set_on_the_request_class_is_heeded(
    guarded: Callable[..., Server], runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Request, "max_content_length", 5)
    server = guarded(lambda: {"run": runs(), "seen": request.get_json()})
    assert server.post(key="k", json={"longer": "than that"}).status_code == 413
    assert runs.count == 0


@pytest.mark.parametrize(("own", "status"), [(5, 413), (100, 200), (None, 413)])
def test_a_limit_that_a_hook_sets_for_one_request_is_heeded(
    guarded: Callable[..., Server], runs: Runs, own: int | None, status: int
) -> None:
    """Flask 3.1: such a limit counts instead of the app's."""
    server = guarded(lambda: {"run": runs(), "seen": request.get_json()})
    server.app.config["MAX_CONTENT_LENGTH"] = 10
    server.app.before_request(lambda: setattr(request, "max_content_length", own))
    assert server.post(key="k", json={"longer": "than that"}).status_code == status
    assert runs.count == (status == 200)


PATCHED = """
from flask import Flask, Request, request
Request.max_content_length = 5
from flask_idempotent import Idempotency, idempotent
app = Flask("shop")
Idempotency(app)
@app.post("/")
@idempotent
def view():
    return request.get_json()
print(app.test_client().post("/", json={"longer": "than that"}, headers={"Idempotency-Key": "k"}).status_code)
"""


def test_a_limit_that_was_set_on_flasks_own_class_before_the_import_is_heeded() -> None:
    done = subprocess.run([sys.executable, "-c", PATCHED], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split() == ["413"], done.stderr
