"""The journal: what it says of each step, however it was cut or doubled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_idempotent.core.steps import (
    INTENT,
    RESULT,
    Entry,
    is_journal,
    journal_key,
    merge_journals,
    name_digest,
    pack_entry,
    read_journal,
)

A, B = name_digest("charge"), name_digest("mail")
ARGUMENTS = b"a" * 32


def intent(name: bytes, arguments: bytes = ARGUMENTS) -> bytes:
    return pack_entry(name, INTENT, arguments)


def result(name: bytes, value: bytes) -> bytes:
    return pack_entry(name, RESULT, value)


def test_a_step_is_open_until_its_result_follows() -> None:
    assert read_journal(b"") == {}
    assert read_journal(intent(A)) == {A: Entry(ARGUMENTS)}
    journal = intent(A) + result(A, b"1") + intent(B)
    assert read_journal(journal) == {A: Entry(ARGUMENTS, b"1"), B: Entry(ARGUMENTS)}


def test_the_first_intent_counts_and_the_last_result() -> None:
    journal = intent(A) + result(A, b"1") + intent(A, b"b" * 32) + result(A, b"2")
    assert read_journal(journal) == {A: Entry(ARGUMENTS, b"2")}


def test_a_result_without_an_intent_says_nothing() -> None:
    assert read_journal(result(A, b"1")) == {}


@given(st.integers(0, 200))
def test_an_entry_that_was_cut_does_not_count(size: int) -> None:
    whole = intent(A) + result(A, b"1") + intent(B) + result(B, b"2" * 20)
    entries = read_journal(whole[:size])
    assert set(entries) <= {A, B}
    for name, entry in entries.items():
        assert entry.arguments == ARGUMENTS
        assert entry.result in (None, {A: b"1", B: b"2" * 20}[name])


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_journals_the_one_with_the_result_counts(swapped: bool) -> None:
    two = intent(A) + result(A, b"1") + intent(B), intent(A) + intent(B) + result(B, b"2")
    merged = merge_journals(*(reversed(two) if swapped else two))
    assert read_journal(merged) == {A: Entry(ARGUMENTS, b"1"), B: Entry(ARGUMENTS, b"2")}
    assert merge_journals(merged, merged) == merged


def test_a_journal_stands_beside_its_record_in_one_slot() -> None:
    key = "idempotency:{digest}"
    assert journal_key(key).startswith(key)
    assert is_journal(journal_key(key))
    assert not is_journal(key)
