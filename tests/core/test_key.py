"""The client's key: one spelling or the other, never two keys in one, never one key in two scopes."""

from __future__ import annotations

import re
import string
import time
from decimal import Decimal
from typing import Any, NamedTuple

import http_sfv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_idempotent.core.digest import combine
from flask_idempotent.core.key import InvalidKey, parse, scoped, storage_key

from .helpers import moderate

UUID = "8e03978e-40d5-43e8-bc93-6894a57f9324"
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))
printable = st.text(PRINTABLE, min_size=1, max_size=40)
bare_words = st.text([char for char in PRINTABLE if char not in ' ",;'], min_size=1, max_size=40)
parameter_names = st.from_regex(r"[a-z*][a-z0-9_\-.*]{0,8}", fullmatch=True)
parameter_values = st.one_of(
    st.booleans(),
    st.integers(-999_999_999_999_999, 999_999_999_999_999),
    st.decimals(-999_999, 999_999, places=3, allow_nan=False),
    st.text(PRINTABLE, max_size=10),
    st.from_regex(r"[A-Za-z*][A-Za-z0-9!#$%&'*+.^_`|~:/-]{0,8}", fullmatch=True).map(http_sfv.Token),
    st.binary(max_size=8),
)


def serialised(key: str, parameters: dict[str, Any] | None = None) -> str:
    """The structured-field spelling, by an implementation that is not ours."""
    item = http_sfv.Item(key)
    for name, value in (parameters or {}).items():
        item.params[name] = value
    return str(item)


def reference(raw: str) -> str | None:
    """What an independent parser of structured fields takes for the key; None when it is no string."""
    item = http_sfv.Item()
    try:
        item.parse(raw.encode())
    except (ValueError, UnicodeEncodeError):
        return None
    return str(item.value) if type(item.value) is str else None


def ours(raw: str, max_length: int = 255) -> str | None:
    try:
        return parse(raw, max_length)
    except InvalidKey:
        return None


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        (UUID, UUID),
        (f'"{UUID}"', UUID),
        (f'  "{UUID}"\t', UUID),
        (f" {UUID} ", UUID),
        (f'"{UUID}";a=1', UUID),
        (f'"{UUID}"; a; b=?0; c="x;y"; d=tok/en; e=:aGk=:; f=-1.5; g=@1700000000; h=%"f%c3%bc"', UUID),
        (f"{UUID};a=1", UUID),
        ('"a b"', "a b"),
        ('"a,b"', "a,b"),
        ('"a;b"', "a;b"),
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', r"a\b"),
        (r"a\b", r"a\b"),
        ("a=b", "a=b"),
        ("a'b", "a'b"),
        ("0", "0"),
        ('"0"', "0"),
        ("?1", "?1"),
        ("k" * 255, "k" * 255),
        (f'"{"k" * 255}"', "k" * 255),
        (f'"{chr(92) * 510}"', chr(92) * 255),
        (f'"{"k" * 255}";a={"x" * 300}', "k" * 255),
    ],
)
def test_a_key_is_read_from_either_spelling(raw: str, key: str) -> None:
    assert parse(raw, 255) == key


@pytest.mark.parametrize(
    "raw",
    [
        *("", " ", "\t", '""', '" "', '"   "', ";", ";a=1", '"";a=1'),
        *('"abc', 'abc"', '"', '"""', '"a"b"', '"a" b', '"a"b', 'a"b', '"a" "b"', '"a" ;b', r'"a\"', r'"a\n"', r'"\a"'),
        *("a b", "a,b", "a, b", '"a", "b"', '"a","a"', "a,", ",a", '"a",'),
        *(
            "a\x00b",
            "a\nb",
            "a\r\nX: y",
            '"a\tb"',
            "a\x7f",
            "\x85a",
            "\xa0",
            "schlüssel",
            '"schlüssel"',
            "a\u2028b",
            "ａ",
            "\ud800",
        ),
        *(
            '"a";',
            '"a";=1',
            '"a";A=1',
            '"a";1',
            '"a";b=',
            '"a";b==1',
            '"a";b="',
            '"a";b=(1)',
            '"a";b=1.',
            '"a";b=\xfc',
            '"a";b=1,',
        ),
        *("k" * 256, f'"{"k" * 256}"', f'"{chr(92) * 512}"'),
    ],
)
def test_a_value_that_is_no_key_is_refused_with_a_reason_that_does_not_repeat_it(raw: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        parse(raw, 255)
    assert str(caught.value).startswith("it ")
    if len(raw.strip()) > 3:
        assert raw.strip() not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ('" "', "blank"),
        ("a\x01", "control"),
        ("ü", "non-ASCII"),
        ("a,b", "exactly one key"),
        ('"a', "quoted string"),
        ("k" * 11, "longer than 10 bytes"),
    ],
)
def test_the_reason_says_what_is_wrong(raw: str, reason: str) -> None:
    with pytest.raises(InvalidKey, match=reason):
        parse(raw, 10)


@pytest.mark.parametrize("limit", [1, 7, 255, 4096])
@pytest.mark.parametrize("spelling", ["{}", '"{}"', '"{}";p=1'])
def test_the_limit_counts_the_key_and_not_its_spelling(limit: int, spelling: str) -> None:
    assert parse(spelling.format("k" * limit), limit) == "k" * limit
    assert ours(spelling.format("k" * (limit + 1)), limit) is None


@settings(moderate, max_examples=60)
@given(printable, st.dictionaries(parameter_names, parameter_values, max_size=4))
@example("k", {"a": Decimal("1.0"), "b": http_sfv.Token("*/:"), "c": b"\xff\xfe", "d": True, "e": '"\\'})
def test_whatever_a_structured_field_library_sends_is_the_same_key(key: str, parameters: dict[str, Any]) -> None:
    raw = serialised(key, parameters)
    assert ours(raw) == (key if key.strip() else None)


@moderate
@given(bare_words)
def test_the_bare_and_the_quoted_spelling_are_the_same_key(word: str) -> None:
    assert parse(word, 255) == parse(serialised(word), 255) == word


@moderate
@given(bare_words, st.dictionaries(parameter_names, parameter_values, min_size=1, max_size=3))
def test_parameters_after_a_bare_word_are_dropped_too(word: str, parameters: dict[str, Any]) -> None:
    tail = serialised(word, parameters).removeprefix(serialised(word))
    assert parse(word + tail, 255) == word


@moderate
@given(st.text('"\\;=ab1 ,*:?@%.-/\t', max_size=16).map('"'.__add__))
def test_a_quoted_value_is_read_as_the_reference_reads_it(raw: str) -> None:
    expected = reference(raw.strip(" \t"))
    if expected is not None:
        assert ours(raw) == (expected if expected.strip() else None)
    elif ";" not in raw:  # parameters, which are dropped, are read more kindly than RFC 9651 asks
        assert ours(raw) is None


@moderate
@given(st.text(max_size=60) | st.text(PRINTABLE + "\t\n", max_size=60), st.integers(1, 50))
def test_any_text_ends_in_a_sound_key_or_in_a_refusal(raw: str, limit: int) -> None:
    key = ours(raw, limit)
    if key is not None:
        assert 0 < len(key) <= limit
        assert set(key) <= set(PRINTABLE)
        assert key.strip()
        assert parse(serialised(key), limit) == key


@pytest.mark.parametrize(
    "raw",
    [
        '"' + "a" * 100_000,
        '"' + "\\" * 100_001,
        '"k"' + ";a=1" * 50_000 + "!",
        '"k";a=' + "x" * 100_000 + '"',
        "k" + ";a" * 50_000 + ";",
    ],
    ids=["unterminated", "escapes", "parameters", "a long parameter", "names"],
)
def test_a_value_made_to_be_slow_is_refused_at_once(raw: str) -> None:
    started = time.perf_counter()
    assert ours(raw) is None
    assert time.perf_counter() - started < 1


# The storage key


class Scope(NamedTuple):
    app: str
    method: str
    path: str
    principal: bytes

    def digest(self, key: str) -> bytes:
        return scoped(*self, key)


SCOPE = Scope("shop", "POST", "/orders", b"alice")


@pytest.mark.parametrize(
    "other",
    [
        SCOPE._replace(app="shop2"),
        SCOPE._replace(method="PATCH"),
        SCOPE._replace(path="/orders/"),
        SCOPE._replace(path="//eu.example/orders"),
        SCOPE._replace(principal=b"bob"),
        SCOPE._replace(principal=b""),
    ],
    ids=["app", "method", "path", "host", "principal", "nobody"],
)
def test_a_key_is_another_key_in_another_scope(other: Scope) -> None:
    assert other.digest("k") != SCOPE.digest("k")


def test_a_scope_tells_its_keys_apart_and_knows_them_again() -> None:
    assert SCOPE.digest("k") == Scope("shop", "POST", "/orders", b"alice").digest("k")
    assert len({SCOPE.digest(key) for key in ("k", "K", "k ", "", "0", "00")}) == 6
    assert len(SCOPE.digest("k")) == 32


def test_the_parts_of_a_scope_are_hashed_in_a_fixed_order() -> None:
    """A record that one release wrote is found by the next."""
    parts = (b"shop", b"POST", b"/orders", b"alice", b"k")
    assert SCOPE.digest("k") == combine("idempotency key 1", *parts)


def test_a_slash_that_moves_from_the_path_to_the_key_makes_another_key() -> None:
    assert Scope("shop", "POST", "/a/b", b"").digest("k") != Scope("shop", "POST", "/b", b"").digest("k/a")
    assert Scope("k", "/a/b", "", b"").digest("") != Scope("k/a", "/b", "", b"").digest("")


@moderate
@given(st.data(), st.text("k/a1:05", max_size=12))
def test_no_crafted_key_or_path_reads_like_another_scope(data: st.DataObject, whole: str) -> None:
    """The same characters cut elsewhere are another key."""
    cuts = st.lists(st.integers(0, len(whole)), min_size=4, max_size=4).map(sorted)

    def parts(at: list[int]) -> list[str]:
        return [whole[start:end] for start, end in zip([0, *at], [*at, len(whole)], strict=True)]

    def digest(app: str, method: str, path: str, principal: str, key: str) -> bytes:
        return Scope(app, method, path, principal.encode()).digest(key)

    one, other = parts(data.draw(cuts)), parts(data.draw(cuts))
    assert (digest(*one) == digest(*other)) is (one == other)


@pytest.mark.parametrize("path", ["/ö", "/\udcff", "/\udcff\udcfe", "/%2F", "/\x00", "/" + "x" * 10_000])
def test_any_path_that_a_server_hands_on_has_a_digest_of_its_own(path: str) -> None:
    assert SCOPE._replace(path=path).digest("k") != SCOPE._replace(path=path + "x").digest("k")


@moderate
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_a_storage_key_names_one_digest_and_nothing_of_the_clients_key(one: bytes, other: bytes) -> None:
    name = storage_key("idempotency:", one)
    assert re.fullmatch(r"idempotency:\{[A-Za-z0-9_-]{43}\}", name)
    assert (name == storage_key("idempotency:", other)) is (one == other)


def test_a_storage_key_keeps_a_record_and_its_journal_in_one_cluster_slot() -> None:
    """Redis Cluster hashes what stands between the first pair of braces, and that is the digest alone."""
    digest = SCOPE.digest("k")
    names = [storage_key(prefix, digest) for prefix in ("idempotency:", "other:")]
    tags = {name[name.index("{") + 1 : name.index("}")] for name in names}
    assert len(tags) == 1
    assert set(tags.pop()) <= set(string.ascii_letters + string.digits + "-_")
