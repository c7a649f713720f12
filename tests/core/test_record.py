"""Records as bytes: what was written is what is read, and damage is never mistaken for an answer."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_idempotent.core.record import (
    FINGERPRINT_SIZE,
    HEAD_SIZE,
    MAX_ATTEMPT,
    OWNER_SIZE,
    VERSION,
    Head,
    NewerRecord,
    State,
    StoredResponse,
    UnreadableRecord,
    UnstorableResponse,
    checksum,
    pack_payload,
    read_head,
    read_response,
)

from .helpers import CREATED, NOW, REQUEST, THEIRS, a_record, flip, moderate

texts = st.text(st.characters(max_codepoint=255), max_size=40)  # what HTTP can carry
responses = st.builds(
    StoredResponse,
    status=texts,
    headers=st.lists(st.tuples(texts, texts), max_size=6).map(tuple),
    body=st.none() | st.binary(max_size=300) | st.binary(min_size=1, max_size=9).map(lambda some: some * 50),
)
heads = st.builds(
    Head,
    state=st.just(State.DONE),
    attempt=st.integers(1, MAX_ATTEMPT),
    owner=st.binary(min_size=OWNER_SIZE, max_size=OWNER_SIZE),
    fingerprint=st.binary(min_size=FINGERPRINT_SIZE, max_size=FINGERPRINT_SIZE),
    deadline=st.integers(0, 10**13 - 1),
)
TEXT = StoredResponse(
    "200 OK", (("Content-Type", "text/plain"), ("Vary", "Accept"), ("Vary", "Origin")), b"answer " * 9
)
SHAPES = {
    "plain": (CREATED, 1024),
    "compressed": (TEXT, 0),
    "empty body": (StoredResponse("204 NO CONTENT", (), b""), 0),
    "omitted body": (StoredResponse("200 OK", (("X", "y"),), None), 0),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def done(shape: str) -> bytes:
    response, compress_over = SHAPES[shape]
    return a_record(State.DONE, response=response, compress_over=compress_over)


def with_content(content: bytes, flags: int = 0) -> bytes:
    """A finished record whose checksum is right, whatever its content."""
    head = Head(State.DONE, 1, THEIRS, REQUEST, NOW).pack()
    return head + struct.pack(">IB", checksum(head, flags, content), flags) + content


def read(record: bytes) -> StoredResponse:
    """The response of a record, read as the machine reads it: first the head."""
    read_head(record)
    return read_response(record)


PENDING, DONE = a_record(State.PENDING), a_record(State.DONE)


@moderate
@given(heads, responses, st.sampled_from([0, 1, 64, 10**9]))
def test_what_was_written_is_what_is_read(head: Head, response: StoredResponse, compress_over: int) -> None:
    record = head.pack() + pack_payload(head.pack(), response, compress_over)
    assert read_head(record) == head
    assert read_response(record) == response


@pytest.mark.parametrize("state", [State.PENDING, State.FAILED])
def test_an_unfinished_record_is_a_head_and_nothing_else(state: State) -> None:
    head = Head(state, MAX_ATTEMPT, THEIRS, REQUEST, NOW)
    assert len(head.pack()) == HEAD_SIZE
    assert read_head(head.pack()) == head


def test_the_format_of_version_1_never_changes() -> None:
    """Rolling deploys: another release reads these bytes, and the Lua scripts cut them at these offsets."""
    head = Head(State.DONE, 258, bytes(range(16)), bytes(range(100, 132)), 1_800_000_000_123)
    written = head.pack() + pack_payload(
        head.pack(), StoredResponse("201 CREATED", (("A", "b\xe9"), ("C", "")), b"\x00x"), 99
    )
    fixed = b"\x01D\x01\x02" + bytes(range(16)) + bytes(range(100, 132))
    content = (
        b"\x00\x0b\x00\x02201 CREATED" + b"\x00\x01\x00\x00\x00\x02Ab\xe9" + b"\x00\x01\x00\x00\x00\x00C" + b"\x00x"
    )
    crc = zlib.crc32(fixed + b"\x00" + content).to_bytes(4, "big")
    assert written == fixed + b"1800000000123" + crc + b"\x00" + content


@pytest.mark.parametrize(
    "response",
    [
        StoredResponse("200 OK", (("X-Name", "\u0141\xf3d\u017a"),), b"{}"),
        StoredResponse("200 OK", (("X-\u2713", ""),), b"{}"),
        StoredResponse("200 \u2713", (), b"{}"),
        StoredResponse("200 OK", (("X", "\ud800"),), b"{}"),
        StoredResponse("200 " + "x" * 70_000, (), b"{}"),
        StoredResponse("200 OK", (("x" * 70_000, ""),), b"{}"),
        StoredResponse("200 OK", (("X", "y"),) * 70_000, b"{}"),
    ],
    ids=["value", "name", "status", "surrogate", "long status", "long name", "many headers"],
)
def test_what_http_cannot_carry_is_refused_and_never_stored_in_part(response: StoredResponse) -> None:
    with pytest.raises(UnstorableResponse):
        pack_payload(DONE, response, 1024)


def test_an_empty_body_and_an_omitted_one_are_two_things() -> None:
    empty, omitted = StoredResponse("200 OK", (), b""), StoredResponse("200 OK", (), None)
    assert read_response(a_record(State.DONE, response=empty)).body == b""
    assert read_response(a_record(State.DONE, response=omitted)).body is None


def test_a_long_text_is_compressed_from_the_threshold_on() -> None:
    body = b'{"id": 1, "name": "mug"}, ' * 100
    response = StoredResponse("200 OK", (), body)
    small = a_record(State.DONE, response=response, compress_over=1024)
    large = a_record(State.DONE, response=response, compress_over=len(body) + 100)
    assert len(small) < len(body) / 5 < len(body) < len(large)
    assert read_response(small) == read_response(large) == response


def test_what_does_not_shrink_is_stored_as_it_is() -> None:
    response = StoredResponse("200 OK", (), random.Random(1).randbytes(5000))
    tried = a_record(State.DONE, response=response, compress_over=0)
    assert tried == a_record(State.DONE, response=response, compress_over=10**6)
    assert len(tried) < len(response.body or b"") + 100


@every_shape
def test_a_record_cut_short_anywhere_is_unreadable(shape: str) -> None:
    record = done(shape)
    for size in range(len(record)):
        with pytest.raises(UnreadableRecord):
            read(record[:size])


@every_shape
def test_a_record_with_something_behind_it_is_unreadable(shape: str) -> None:
    for tail in (b"\x00", b"\x00" * 4, b"x", done(shape)):
        with pytest.raises(UnreadableRecord):
            read_response(done(shape) + tail)


@every_shape
def test_one_flipped_bit_never_gives_another_response(shape: str) -> None:
    record, original = done(shape), SHAPES[shape][0]
    kept = 0
    for bit in range(8 * len(record)):
        damaged = flip(record, bit)
        with contextlib.suppress(UnreadableRecord, NewerRecord):
            assert read(damaged) == original
            assert HEAD_SIZE - 13 <= bit // 8 < HEAD_SIZE, "only the deadline is left out of the checksum"
            kept += 1
    assert kept > 0, "a store may rewrite the deadline"


@moderate
@given(st.sampled_from(sorted(SHAPES)), st.data())
def test_a_burst_of_up_to_four_bytes_never_gives_another_response(shape: str, data: st.DataObject) -> None:
    record = done(shape)
    at = data.draw(st.integers(0, len(record) - 4))
    noise = data.draw(st.binary(min_size=4, max_size=4))
    damaged = record[:at] + bytes(a ^ b for a, b in zip(record[at : at + 4], noise, strict=True)) + record[at + 4 :]
    with contextlib.suppress(UnreadableRecord, NewerRecord):
        assert read(damaged) == SHAPES[shape][0]


@moderate
@given(heads, heads, responses)
def test_a_payload_behind_another_requests_head_is_unreadable(one: Head, other: Head, response: StoredResponse) -> None:
    spliced = other.pack() + pack_payload(one.pack(), response, 64)
    if one.pack()[: HEAD_SIZE - 13] == other.pack()[: HEAD_SIZE - 13]:
        assert read_response(spliced) == response
    else:
        with pytest.raises(UnreadableRecord):
            read_response(spliced)


def test_a_store_may_rewrite_the_deadline_of_a_finished_record() -> None:
    record = done("plain")
    rewritten = record[: HEAD_SIZE - 13] + b"1900000000000" + record[HEAD_SIZE:]
    assert read_head(rewritten).deadline == 1_900_000_000_000
    assert read_response(rewritten) == CREATED


@pytest.mark.parametrize("version", [VERSION + 1, VERSION + 2, 127, 128, 255])
def test_every_later_version_is_told_apart_from_damage(version: int) -> None:
    for record in (done("plain"), a_record(State.PENDING), b"\x00"):
        with pytest.raises(NewerRecord):
            read_head(bytes((version,)) + record[1:])


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x01", id="a version alone"),
        pytest.param(b"\x00" + PENDING[1:], id="version 0"),
        pytest.param(b"\x01X" + PENDING[2:], id="an unknown state"),
        pytest.param(b"\x01p" + PENDING[2:], id="a state in lower case"),
        pytest.param(b"\x01P\x00\x00" + PENDING[4:], id="attempt 0"),
        pytest.param(PENDING + b"x", id="pending with a payload"),
        pytest.param(b"\x01F" + PENDING[2:] + b"x", id="failed with a payload"),
        pytest.param(DONE[:HEAD_SIZE], id="done without a payload"),
        *(
            pytest.param(PENDING[: HEAD_SIZE - 13] + digits, id=f"deadline {digits.decode('latin-1')!r}")
            for digits in (b" 180000000000", b"+180000000000", b"-180000000000", b"180000000000 ", b"180_000000000")
        ),
        *(
            pytest.param(PENDING[: HEAD_SIZE - 13] + digits, id=f"deadline {digits!r}")
            for digits in (
                b"0x80000000000",
                b"1.80000000000",
                b"\x00" * 13,
                b"1800000000\xb2\xb3\xb9",
                b"1800000000\n\n\n",
            )
        ),
    ],
)
def test_a_head_that_contradicts_itself_is_unreadable(record: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        read_head(record)


@pytest.mark.parametrize("flags", [4, 8, 16, 32, 64, 128, 255])
def test_unknown_flags_are_unreadable_even_with_the_right_checksum(flags: int) -> None:
    content = DONE[HEAD_SIZE + 5 :]
    assert read_response(with_content(content)) == CREATED
    with pytest.raises(UnreadableRecord):
        read_response(with_content(content, flags))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x00\x05\x00\x00OK", id="a status longer than the rest"),
        pytest.param(b"\x00\x00\x00\x02" + b"\x00\x01\x00\x00\x00\x01Ab", id="fewer headers than announced"),
        pytest.param(b"\x00\x00\x00\x01" + b"\xff\xff\x00\x00\x00\x00A", id="a name longer than the rest"),
        pytest.param(b"\x00\x00\x00\x01" + b"\x00\x01\xff\xff\xff\xffA", id="a value longer than the rest"),
    ],
)
@pytest.mark.parametrize("flags", [0, 2])
def test_a_payload_that_contradicts_itself_is_unreadable_even_with_the_right_checksum(
    content: bytes, flags: int
) -> None:
    with pytest.raises(UnreadableRecord):
        read_response(with_content(content, flags))


@moderate
@given(st.binary(max_size=200), st.integers(0, 3))
def test_reading_forged_content_ends_in_a_response_or_in_unreadable(content: bytes, flags: int) -> None:
    for forged in (with_content(content, flags), with_content(zlib.compress(content), flags)):
        try:
            response = read_response(forged)
        except UnreadableRecord:
            continue
        assert isinstance(response, StoredResponse)
        assert len(response.status) + len(response.body or b"") <= len(content)


@moderate
@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: PENDING[:52] + tail))
def test_reading_foreign_bytes_ends_in_a_head_or_in_one_of_two_errors(value: bytes) -> None:
    try:
        head = read_head(value)
        if head.state is State.DONE:
            read_response(value)
    except (UnreadableRecord, NewerRecord):
        return
    assert head.pack() == value[:HEAD_SIZE]


@pytest.mark.parametrize("record", [PENDING, a_record(State.FAILED), b"", b"\x01D"])
def test_an_unfinished_record_has_no_response(record: bytes) -> None:
    with pytest.raises(UnreadableRecord):
        read_response(record)
