"""One way to hash several parts: no two lists of parts read the same."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flask_idempotent.core.digest import combine

from .helpers import moderate

# What an attacker would send: bytes that look like the length prefixes themselves.
tricky = st.lists(st.sampled_from([b"0", b"1", b"2", b"11", b":", b"1:", b"0:", b"a", b""]), max_size=8).map(b"".join)


def test_a_digest_has_32_bytes_and_stays_the_same_for_ever() -> None:
    """Records of running deployments are found by it."""
    assert combine("idempotency key 1", b"app", b"", b"k") == hashlib.sha256(b"17:idempotency key 13:app0:1:k").digest()


@moderate
@given(st.data(), tricky)
def test_the_same_bytes_cut_elsewhere_have_another_digest(data: st.DataObject, whole: bytes) -> None:
    cuts = st.lists(st.integers(0, len(whole)), max_size=4).map(sorted)

    def parts(at: list[int]) -> list[bytes]:
        return [whole[start:end] for start, end in zip([0, *at], [*at, len(whole)], strict=True)]

    one, other = parts(data.draw(cuts)), parts(data.draw(cuts))
    assert (combine("p", *one) == combine("p", *other)) is (one == other)


@moderate
@given(st.lists(tricky, max_size=4), st.lists(tricky, max_size=4))
@example([b"a", b"1:b"], [b"a1:1:b"])
@example([b"1:a", b""], [b"", b"1:a"])
@example([], [b""])
@example([b""], [b"", b""])
@example([b"0:"], [b"", b""])
def test_two_lists_of_parts_share_a_digest_only_when_they_are_equal(one: list[bytes], other: list[bytes]) -> None:
    assert (combine("p", *one) == combine("p", *other)) is (one == other)


@pytest.mark.parametrize(("one", "other"), [("a", "b"), ("a", "a "), ("1:a", "a"), ("", "0:"), ("é", "è")])
def test_two_purposes_never_share_a_digest(one: str, other: str) -> None:
    assert combine(one, b"x") != combine(other, b"x")
    assert combine(one) != combine(other)


def test_a_purpose_is_not_mistaken_for_a_part() -> None:
    assert combine("p", b"x") != combine("p1:x")
    assert combine("", b"p") != combine("p", b"")


def test_a_purpose_is_counted_in_characters_and_a_part_in_bytes() -> None:
    """As it was when the first keys were made."""
    assert combine("größe", "é".encode()) == hashlib.sha256("5:größe2:é".encode()).digest()


@pytest.mark.parametrize("size", [0, 1, 9, 10, 99, 100, 255, 256, 257, 1000])
def test_a_part_of_any_size_is_counted(size: int) -> None:
    part = b"x" * size
    assert combine("p", part, b"") == hashlib.sha256(b"1:p%d:%b0:" % (size, part)).digest()
