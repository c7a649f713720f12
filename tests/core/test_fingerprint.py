"""What makes two requests the same request."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_idempotent.core import fingerprint as module
from flask_idempotent.core.digest import combine
from flask_idempotent.core.fingerprint import (
    fingerprint,
    form_body,
    pairs,
    raw_body,
    streamed_body,
)

from .helpers import moderate


def json_body(body: bytes, ignored: frozenset[str] = frozenset()) -> bytes:
    """By the parser, and not by what it said before."""
    module._known.clear()
    return module.json_body(body, ignored)


def utf8(document: str | bytes) -> bytes:
    return document if isinstance(document, bytes) else document.encode()


def same(one: str | bytes, other: str | bytes) -> bool:
    return json_body(utf8(one)) == json_body(utf8(other))


def counts_by_its_bytes(document: str | bytes) -> bool:
    return json_body(utf8(document)) == raw_body(utf8(document))


# JSON by value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":{"x":1,"y":[1,2]}}', ' { "a" : { "y" : [ 1 , 2 ] , "x" : 1 } } \r\n\t'),
        ("[]", "[ ]"),
        ('"\\u00e9"', '"é"'),
        ('"\\u00E9"', '"\\u00e9"'),
        ('"\\ud83d\\ude00"', '"😀"'),
        ('"\\/"', '"/"'),
        ('{"\\u0061":1}', '{"a":1}'),
        ("1e2", "100.0"),
        ("1E+2", "1e2"),
        ("1.5", "1.50"),
        ("15e-1", "1.5"),
        ("0.0", "0.00"),
        ("0.0", "0e7"),
        ("-0.0", "-0.00"),
        ("-0.0", "-0e5"),
        ("0.1e1", "1.0"),
        ("[1.0]", "[10e-1]"),
        ("1e400", "10e399"),
        ("1e999999999999", "10e999999999998"),
        ("0.1000000000000000055511151231257827", "0.10000000000000000555111512312578270"),
    ],
)
def test_two_spellings_of_one_value_are_the_same(one: str, other: str) -> None:
    assert same(one, other)
    assert not counts_by_its_bytes(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("[1,2]", "[2,1]"),
        ("[]", "{}"),
        ("[]", "null"),
        ("[[]]", "[[],[]]"),
        ("null", '"null"'),
        ("null", "false"),
        ("true", "1"),
        ("false", "0"),
        ("1", "1.0"),
        ("1", '"1"'),
        ("1.0", '"1.0"'),
        ("1.0", "true"),
        ("[1]", "1"),
        ('{"a":null}', "{}"),
        ('{"a":1}', '{"A":1}'),
        ('{"a":1}', '["a",1]'),
        ('{"a":{"b":1}}', '{"a":1,"b":1}'),
        ('""', "null"),
        ('"a"', '"a "'),
        ('"é"', '"e\u0301"'),
        ('"\\ud800"', '"\\ud801"'),
        ('"\\ud800"', '"\\ufffd"'),
        ('"\\ude00\\ud83d"', '"\\ud83d\\ude00"'),
        ("9007199254740992", "9007199254740993"),
        ("9007199254740992.0", "9007199254740993.0"),
        ("1e16", "10000000000000001.0"),
        ("0.1", "0.1000000000000000055511151231257827"),
        ("1e400", "2e400"),
        ("1e400", "1e401"),
        ("1e-400", "2e-400"),
        ("1e-400", "0.0"),
        ("0.0", "-0.0"),
        ("1.5", "-1.5"),
        ("1.5", "15.0"),
        ("1.05", "1.5"),
        ("12e0", "1e2"),
        ("1.1e1", "1e11"),
        ("1" * 4000, "1" * 3999 + "2"),
        (f"0.{'1' * 10_000}", f"0.{'1' * 9_999}2"),
    ],
)
def test_two_values_are_never_the_same(one: str, other: str) -> None:
    assert not same(one, other)


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "{",
        "{'a':1}",
        '{"a":1,}',
        "[1,]",
        "01",
        "1.",
        ".5",
        "+1",
        "0x1",
        "1 2",
        "//",
        "NaN",
        "[NaN]",
        "Infinity",
        '{"a":-Infinity}',
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '[{"x":{"a":1,"a":2}}]',
        '"\x00"',
        '"\n"',
        '"\\u0000"',
        '{"\\u0000":1}',
        '"\\x41"',
        '"\\ud8"',
        "\ufeff{}",
        b"\xff",
        b'{"a":"\xff"}',
        b'"\xed\xa0\x80"',
        '{"a":1}'.encode("utf-16"),
        "1" * 10_000,
        "-" + "9" * 10_000,
        '{"a":[' + "7" * 10_000 + "]}",
        "1e" + "9" * 30,
        "1e-" + "9" * 30,
        "0e" + "9" * 30,
        "1e" + "9" * 10_000,
        "[" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
    ids=lambda document: repr(document[:24]),
)
def test_a_document_whose_value_is_not_certain_counts_by_its_bytes(document: str | bytes) -> None:
    assert counts_by_its_bytes(document)
    assert not same(document, utf8(document) + b" ")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"a":2}', '{"a":2}'),
        ('{"a":1,"a":2}', '{"a":1}'),
        ('{"a":1,"a":2}', '{"a":2,"a":1}'),
        ('{"a":1.5}', '{"a":"\\u00000:15:-1"}'),
        ('{"a":1.5}', '{"a":"\x000:15:-1"}'),
        ('{"a":1.5}', '{"a":"0:15:-1"}'),
        ("0.0", '"\\u00000:0"'),
        ("[1.5]", '["\\u0000" "0:15:-1"]'),
        ("1" * 10_000, "1" * 9_999 + "2"),
        ("NaN", "null"),
        ("NaN", '"NaN"'),
        ("1e" + "9" * 30, "1e" + "9" * 31),
        (b'"\xff"', b'"\xfe"'),
        (b'"\xff"', '"\ufffd"'),
        ("[" * 5000 + "]" * 5000, "[" * 5001 + "]" * 5001),
    ],
    ids=lambda document: repr(document[:24]),
)
def test_no_crafted_document_reads_like_another(one: str | bytes, other: str | bytes) -> None:
    assert not same(one, other)


DEEP = (50, 150, 300, 450, 600, 750, 900)


def beneath(frames: int, call: Callable[[], bytes]) -> bytes:
    """The result of a call with so many functions more on the stack: another middleware, a debugger, a test client."""
    return call() if frames == 0 else beneath(frames - 1, call)


@pytest.mark.parametrize("depth", DEEP)
def test_the_fingerprint_of_a_nested_document_does_not_depend_on_who_asks(depth: int) -> None:
    """A retry whose stack is a little deeper is still the same request, not 422."""
    document = b"[" * depth + b"]" * depth
    digests = {beneath(frames, lambda: json_body(document)) for frames in (0, 50, 100, 200, 300)}
    assert len(digests) == 1


def test_a_document_nested_as_deeply_as_real_ones_counts_by_its_value() -> None:
    assert same('{"a":1,"b":"' + "[{" * 500 + '\\""}', '{"b":"' + "[{" * 500 + '\\"","a":1}')
    assert same('{"a":1,"b":[' + "[]," * 500 + "[]]}", '{"b": [' + "[]," * 500 + '[]], "a": 1}')
    assert same('{"a":[' * 20 + '{"x":1,"y":2}' + "]}" * 20, '{"a": [' * 20 + '{"y": 2, "x": 1}' + "]}" * 20)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\u00e9\ud800", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def respelt(value: Any, seed: int) -> str:
    """The same document with its members in another order, other white space and other escapes."""
    chance = random.Random(seed)

    def shuffled(part: Any) -> Any:
        if isinstance(part, list):
            return [shuffled(item) for item in part]
        if isinstance(part, dict):
            members = list(part.items())
            chance.shuffle(members)
            return {name: shuffled(member) for name, member in members}
        return part

    indent, separators = chance.choice([None, 1, 3]), chance.choice([(",", ":"), (" ,", " : ")])
    return json.dumps(shuffled(value), indent=indent, separators=separators, ensure_ascii=True)


@moderate
@given(documents)
def test_the_canonical_text_is_the_encoders_with_its_c_code_and_without(value: Any) -> None:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert "".join(module._CHUNKS(value, 0)) == "".join(module._ENCODER.iterencode(value)) == canonical


def exactly(value: Any) -> Any:
    """A value with its types, for True is 1 in Python and not in JSON."""
    if isinstance(value, list):
        return ("list", *map(exactly, value))
    if isinstance(value, dict):
        return ("dict", frozenset((name, exactly(member)) for name, member in value.items()))
    return (type(value).__name__, value)


@moderate
@given(documents, st.integers(0, 2**16))
def test_order_of_members_white_space_and_escapes_do_not_matter(value: Any, seed: int) -> None:
    document = json.dumps(value)
    assert same(document, respelt(value, seed)) or "\\u0000" in document


@moderate
@given(documents, documents)
@example([True], [1])
@example({"a": [1]}, {"a": ["1"]})
@example(["a", "b"], ["a,b"])
@example(['a","b'], ["a", "b"])
@example({"a": 1, "b": 2}, {"a": '1,"b":2'})
def test_two_documents_are_the_same_only_when_their_values_are(one: Any, other: Any) -> None:
    assert same(json.dumps(one), json.dumps(other)) is (exactly(one) == exactly(other))


digits = st.text("0123456789", min_size=1, max_size=8)
numbers = st.builds(
    lambda sign, whole, fraction, mark, exponent: f"{sign}{int(whole)}.{fraction}{mark}{exponent}",
    st.sampled_from(["", "-"]),
    st.just("0") | digits,
    digits,
    st.sampled_from(["e", "E", "e+", "E-"]),
    st.integers(0, 12),
)


@settings(moderate, max_examples=400)
@given(st.data(), numbers)
def test_two_numbers_are_the_same_exactly_when_their_value_and_sign_are(data: st.DataObject, one: str) -> None:
    value = Decimal(one)
    moved = data.draw(st.integers(-9, 9))
    spelt_anew = f"{value.scaleb(moved)}".replace("E", "e")
    respelling = (spelt_anew if "e" in spelt_anew else f"{spelt_anew}e0").split("e")
    other = data.draw(numbers | st.just(f"{respelling[0]}e{int(respelling[1]) - moved}"))
    equal = Decimal(other) == value and Decimal(other).is_signed() == value.is_signed()
    assert same(one, other) is equal
    assert not same(one, json.dumps(one))


@moderate
@given(st.binary(max_size=60) | st.text('{}[]",:\\u0123456789eE+-.truefalsnN \x00é', max_size=60).map(str.encode))
def test_any_bytes_have_a_digest(body: bytes) -> None:
    assert len(json_body(body)) == 32
    assert json_body(body) == json_body(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 1_000_000, id="open brackets"),
        pytest.param(b'{"a":' * 200_000, id="open objects"),
        pytest.param(b"1" * 1_000_000, id="one long integer"),
        pytest.param(b"[" + b"9" * 4_300 + (b"," + b"9" * 4_300) * 230 + b"]", id="many long integers"),
        pytest.param(b"0." + b"1" * 1_000_000, id="one long fraction"),
        pytest.param(b"1e" + b"9" * 1_000_000, id="one long exponent"),
        pytest.param(b"[1.5" + b",1.5" * 250_000 + b"]", id="many fractions"),
        pytest.param(b"[1e999999999" + b",1e999999999" * 80_000 + b"]", id="many large exponents"),
        pytest.param(b'"' + b"\\" * 1_000_000, id="backslashes"),
        pytest.param(b'"' + b"\\ud800" * 160_000 + b'"', id="lone surrogates"),
        pytest.param(b"[" + b"[]," * 340_000 + b"[]]", id="many brackets"),
        pytest.param(b"[" + b"[]," * 200 + b'"' + b'\\"' * 16_000, id="many brackets, then quotes without an end"),
        pytest.param(
            b"[" + b"[]," * 200 + b'"' + b'\\"' * 16_000 + b"\\", id="many brackets, then escapes without an end"
        ),
        pytest.param(b'{"a":0' + b"".join(b',"%d":0' % n for n in range(90_000)) + b"}", id="many members"),
    ],
)
def test_a_body_made_to_be_slow_is_digested_in_time(body: bytes) -> None:
    started = time.process_time()  # of this process alone: others may keep it waiting
    json_body(body)
    assert time.process_time() - started < (5 if len(body) > 100_000 else 1)


# Members that do not count

CSRF = frozenset({"csrf_token"})


def test_an_ignored_member_of_the_outermost_object_does_not_count() -> None:
    digests = {
        json_body(body, CSRF)
        for body in (
            b'{"a":1,"csrf_token":"x"}',
            b'{"csrf_token":["y",2.5],"a":1}',
            b'{"a":1}',
            b'{"a":1,"csrf_\\u0074oken":0}',
        )
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'{"a":{"csrf_token":1}}', b'{"a":{"csrf_token":2}}'),
        (b'[{"csrf_token":1}]', b'[{"csrf_token":2}]'),
        (b'"csrf_token"', b'""'),
        (b'{"CSRF_TOKEN":1}', b'{"CSRF_TOKEN":2}'),
        (b'{"a":1,"csrf_token":1}', b'{"a":2,"csrf_token":1}'),
        (b"{}", b"[]"),
    ],
)
def test_everything_else_counts(one: bytes, other: bytes) -> None:
    assert json_body(one, CSRF) != json_body(other, CSRF)


@pytest.mark.parametrize("body", [b"[1]", b"1", b"null", b'"csrf_token"', b"{", b"[" * 10_000])
def test_ignored_names_change_nothing_where_there_is_no_object(body: bytes) -> None:
    assert json_body(body, CSRF) == json_body(body)


# Other bodies


def test_a_body_hashed_while_it_is_read_is_the_body_that_was_read_before() -> None:
    assert streamed_body(hashlib.sha256(b"abc").digest()) == raw_body(b"abc")


@moderate
@given(st.binary(max_size=20))
def test_a_body_of_one_kind_is_never_a_body_of_another(body: bytes) -> None:
    text = body.decode("latin-1")
    kinds = [raw_body(body), json_body(json.dumps(text).encode()), form_body([(text, "")]), form_body([], [(text, "")])]
    kinds += [pairs([(text, "")]), combine("raw", body)]
    assert len(set(kinds)) == len(kinds)


def test_raw_bodies_count_by_every_byte() -> None:
    bodies = [b"", b"\x00", b"\x00\x00", b"a", b"a ", b"A", b"{}", b"{ }"]
    assert len({raw_body(body) for body in bodies}) == len(bodies)


texts = st.text("ab=&1:?\ud800", max_size=3)
fields = st.lists(st.tuples(texts, texts), max_size=4)


@moderate
@given(fields, fields)
@example([("a", "b=c")], [("a=b", "c")])
@example([("a", "b"), ("c", "d")], [("a", "b:c:d")])
@example([("a", "")], [("", "a")])
@example([("a", "a"), ("a", "a")], [("a", "a")])
@example([], [("", "")])
@example([("\ud800", "")], [("\ud801", "")])
@example([("\ud800", "")], [("?", "")])
def test_pairs_are_the_same_exactly_when_each_name_has_the_same_values_in_the_same_order(
    one: list[tuple[str, str]], other: list[tuple[str, str]]
) -> None:
    def by_name(pair: tuple[str, str]) -> str:
        return pair[0]

    assert (pairs(one) == pairs(other)) is (sorted(one, key=by_name) == sorted(other, key=by_name))
    assert pairs(one) == pairs(sorted(one, key=by_name, reverse=True))


def test_the_rows_of_a_form_are_not_mixed_up() -> None:
    one = [("item", "tea"), ("qty", "1"), ("item", "gold"), ("qty", "9")]
    assert pairs(one) != pairs([("item", "tea"), ("qty", "9"), ("item", "gold"), ("qty", "1")])
    assert pairs(one) == pairs([("item", "tea"), ("item", "gold"), ("qty", "1"), ("qty", "9")])


def test_a_field_is_not_a_file_and_a_file_does_not_move_to_another_field() -> None:
    forms = [
        form_body([("a", "x"), ("b", "y")]),
        form_body([("a", "x")], [("b", "y")]),
        form_body([("b", "y")], [("a", "x")]),
        form_body([], [("a", "x"), ("b", "y")]),
        form_body([], [("a", "y"), ("b", "x")]),
        form_body([]),
    ]
    assert len(set(forms)) == len(forms)
    assert form_body(iter([("b", "y"), ("a", "x")])) == forms[0]


# The request

REQUEST: dict[str, Any] = {"query": [("a", "1"), ("b", "2")], "content_type": "application/json", "body": b"x" * 32}


def test_the_same_request_has_the_same_fingerprint() -> None:
    assert fingerprint(**REQUEST) == fingerprint(**REQUEST | {"query": [("b", "2"), ("a", "1")]})
    assert fingerprint(**REQUEST) == fingerprint(**REQUEST | {"content_type": "Application/JSON"})
    assert fingerprint(**REQUEST) == fingerprint(**REQUEST, credentials=b"", selectors=[])
    one, other = ("if-match", "x"), ("range", "bytes=0-9")
    assert fingerprint(**REQUEST, selectors=[one, other]) == fingerprint(**REQUEST, selectors=[other, one])
    assert len(fingerprint(**REQUEST)) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"query": []},
        {"query": [("a", "1")]},
        {"query": [("a", "2"), ("b", "1")]},
        {"query": [("a", "1"), ("b", "2"), ("b", "2")]},
        {"content_type": ""},
        {"content_type": "application/merge-patch+json"},
        {"content_type": "text/plàin"},
        {"body": b"y" * 32},
        {"body": b""},
        {"credentials": b"x"},
        {"body": b"", "credentials": b"x" * 32},
        {"content_type": "", "body": b"application/json" + b"x" * 32},
        {"selectors": [("if-match", "x")]},
        {"query": [], "selectors": [("a", "1"), ("b", "2")]},
    ],
    ids=str,
)
def test_every_part_of_a_request_counts(change: dict[str, Any]) -> None:
    assert fingerprint(**REQUEST | change) != fingerprint(**REQUEST)


def test_a_fingerprint_stays_the_same_from_release_to_release() -> None:
    """A retry may reach a worker that runs another one; a change needs another purpose and a reader of the old one."""
    body = json_body(b'{"b":[1.50,true,null,"\\u00e9"],"a":-7}')
    assert body == combine("json", b'{"a":-7,"b":["\\u00000:15:-1",true,null,"\\u00e9"]}')
    assert raw_body(b"abc") == combine("raw", hashlib.sha256(b"abc").digest())
    assert form_body([("q", "1")]) == combine("form", combine("pairs", b"q", b"1"), combine("pairs"))
    query, selectors = combine("pairs", b"q", b"1"), combine("pairs")
    made = fingerprint(query=[("q", "1")], content_type="application/json", body=body, credentials=b"c")
    assert made == combine("request fingerprint 1", query, b"application/json", body, b"c", selectors)


def test_a_body_that_came_before_is_not_parsed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b'{"order": 7, "csrf_token": "x"}'
    module._known.clear()
    before = module.json_body(body), module.json_body(body, CSRF)
    assert before == (json_body(body), json_body(body, CSRF))
    module.json_body(body)
    monkeypatch.setattr(module, "_DECODER", None)
    assert (module.json_body(body), module.json_body(body, CSRF)) == before
    assert before[0] != before[1]
    with pytest.raises(AttributeError):
        module.json_body(body + b" ")


def parsed(body: bytes, ignored: frozenset[str] = frozenset()) -> list[Any]:
    """What the view is spared to parse."""
    told: list[Any] = []
    module._known.clear()
    module.json_body(body, ignored, told.append)
    return told


numbered = st.recursive(scalars | st.floats(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@moderate
@given(numbered, st.integers())
@example([1, -0, True, None, "1", {"a": "\u00e9"}], 0)
@example({"a": 1.0}, 0)
def test_what_the_view_is_spared_to_parse_is_what_it_would_have_parsed(value: Any, seed: int) -> None:
    text = respelt(value, seed)
    for told in parsed(text.encode()):
        assert repr(told) == repr(json.loads(text)), "a float is no int, and an int no bool"


@pytest.mark.parametrize("body", [b'{"a":1}', b'[{"a":["x",null,true,12345678901234567890]}]', b'"x"', b"7", b" {} "])
def test_a_document_without_fractions_is_parsed_once(body: bytes) -> None:
    assert parsed(body) == [json.loads(body)]


@pytest.mark.parametrize(
    "body", [b'{"a":1.5}', b"[1e2]", b'{"a":1,"a":2}', b"[NaN]", b'"\\u0000"', b"[" * 101 + b"]" * 101, b"{"]
)
def test_what_is_read_differently_for_the_digest_is_left_to_the_view(body: bytes) -> None:
    assert parsed(body) == []


def test_a_document_with_ignored_members_is_left_to_the_view() -> None:
    """What is in them is not looked at."""
    assert parsed(b'{"a":1,"trace":1.5}', frozenset({"trace"})) == []


def test_only_so_many_bodies_are_remembered() -> None:
    module._known.clear()
    for number in range(module.MOST_KNOWN + 10):
        module.json_body(b'{"number": %d}' % number)
        assert len(module._known) <= module.MOST_KNOWN
    assert len(module._known) == 10
