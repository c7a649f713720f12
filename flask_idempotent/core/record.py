"""One record is one byte string: a fixed head that every store can read, and the stored response behind it.

    offset  0  version      1 byte
            1  state        1 byte, one of P, F, D
            2  attempt      2 bytes, big-endian, counted from 1
            4  owner       16 bytes, the token of the request that wrote it
           20  fingerprint 32 bytes, digest of the request
           52  deadline    13 ASCII digits, milliseconds since the epoch by the store's clock
           65  payload     only in state D: checksum, flags, and the response

The deadline is the end of the lease in P, the time of the failure in F and the end of the retention in D. It is the
one field that a store rewrites in place, so the checksum leaves it out. Records are data and nothing else: nothing
read from a store is ever executed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Final, NamedTuple

VERSION: Final = 1
HEAD_SIZE: Final = 65
OWNER_SIZE: Final = 16
FINGERPRINT_SIZE: Final = 32
DEADLINE_SIZE: Final = 13
UNDATED_SIZE: Final = HEAD_SIZE - DEADLINE_SIZE  # of a head before its deadline
ATTEMPT: Final = slice(2, 4)  # where the number of the attempt stands
MARK: Final = slice(1, 20)  # state, attempt and owner: what tells two states of a record apart
OWNER: Final = slice(4, 20)  # where the owner's token stands
MAX_ATTEMPT: Final = 0xFFFF

RESULT: Final = b"\x01J"  # what a plain result in JSON begins with, which is no record

_UNDATED = struct.Struct(">BcH16s32s")
_HEAD = struct.Struct(f"{_UNDATED.format}13s")
_PREFIX = struct.Struct(">IB")  # checksum, flags
_META = struct.Struct(">HH")  # length of the status line, number of headers
_HEADER = struct.Struct(">HI")  # lengths of a header's name and value

#: The first 52 bytes of a head, which tell whose record it is and how it stands; of state, attempt, owner, fingerprint.
undated_head: Final[Callable[[bytes, int, bytes, bytes], bytes]] = partial(_UNDATED.pack, VERSION)
#: The last 13 bytes of a head, of its deadline. (Neither is a function of its own: each request packs several.)
pack_deadline: Final[Callable[[int], bytes]] = b"%013d".__mod__

_COMPRESSED: Final = 1
_OMITTED: Final = 2
_FLAGS: Final = _COMPRESSED | _OMITTED


class State(bytes, Enum):
    """What a record says about its request."""

    PENDING = b"P"
    FAILED = b"F"
    DONE = b"D"


_STATES: Final = {state.value: state for state in State}


class UnreadableRecord(ValueError):
    """The bytes are no record: truncated, altered, or written by something else."""


class NewerRecord(ValueError):
    """The record was written by a later version of this library (a rolling deploy)."""


class UnstorableResponse(ValueError):
    """A response that has no place in a record."""


class Head(NamedTuple):
    """The fixed part of a record. (Several are made for each request, and tuples are made in no time.)

    :param state: what the record says.
    :param attempt: how often the request has been started, from 1.
    :param owner: the 16-byte token of the request that wrote the record.
    :param fingerprint: the 32-byte digest of that request.
    :param deadline: milliseconds since the epoch by the store's clock; see the module's table.
    """

    state: State
    attempt: int
    owner: bytes
    fingerprint: bytes
    deadline: int

    def pack(self) -> bytes:
        """The 65 bytes of the head."""
        return undated_head(*self[:4]) + pack_deadline(self.deadline)


class StoredResponse(NamedTuple):
    """A response as it is kept and replayed.

    :param status: the status line without the protocol, ``"201 CREATED"``.
    :param headers: name and value pairs in their order, multi-valued ones repeated.
    :param body: the body's bytes; ``None`` when it was over the limit and left out.
    """

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes | None


def read_head(record: bytes) -> Head:
    """Parse and check the head of a record.

    :raises NewerRecord: a later version wrote it.
    :raises UnreadableRecord: it is not a record.
    """
    if not record:
        raise UnreadableRecord("an empty value is no record")
    if record[0] > VERSION:
        raise NewerRecord(f"record version {record[0]} is newer than {VERSION}")
    if len(record) < HEAD_SIZE or record[0] != VERSION:
        raise UnreadableRecord("too short, or of an unknown version")
    _, letter, attempt, owner, fingerprint, digits = _HEAD.unpack_from(record)
    state = _STATES.get(letter)
    if state is None or attempt == 0 or not digits.isdigit():
        raise UnreadableRecord("the head is damaged")
    if (state is State.DONE) != (len(record) > HEAD_SIZE):
        raise UnreadableRecord("the head contradicts itself")
    return Head(state, attempt, owner, fingerprint, int(digits))


def is_running(record: bytes, now: int) -> bool:
    """Whether a record says that its worker is alive; what a later version wrote is believed without its lease.

    :param now: the store's clock, milliseconds since the epoch.
    """
    if record[1:2] != State.PENDING.value:
        return False
    try:
        return read_head(record).deadline > now
    except (NewerRecord, UnreadableRecord):
        return True


def checksum(head: bytes, flags: int, content: bytes) -> int:
    """CRC-32 over a head up to its deadline, the byte of flags, and what follows that."""
    return zlib.crc32(content, zlib.crc32(head[:UNDATED_SIZE] + bytes((flags,))))


def pack_payload(head: bytes, response: StoredResponse, compress_over: int) -> bytes:
    """The payload that follows ``head`` in a finished record.

    :param head: the bytes of the head it belongs to, in state DONE; the checksum ties the two together, but for the
        deadline.
    :param response: what to keep.
    :param compress_over: bytes from which compression is tried; it is used only where it saves space.
    :raises UnstorableResponse: a header or the status is not what HTTP can send (latin-1), or beyond all bounds.
    """
    try:
        content = _pack(response)
    except (UnicodeEncodeError, struct.error) as error:
        raise UnstorableResponse(f"the response cannot be stored: {error}") from error
    flags = _OMITTED if response.body is None else 0
    if len(content) > compress_over:
        packed = zlib.compress(content, 1)
        if len(packed) < len(content):
            content, flags = packed, flags | _COMPRESSED
    return _PREFIX.pack(checksum(head, flags, content), flags) + content


def read_response(record: bytes) -> StoredResponse:
    """The response in a finished record.

    :param record: the whole record, head and payload.
    :raises UnreadableRecord: the checksum or the structure is wrong.
    """
    try:
        expected, flags = _PREFIX.unpack_from(record, HEAD_SIZE)
        content = record[HEAD_SIZE + _PREFIX.size :]
        if flags & ~_FLAGS or expected != checksum(record, flags, content):
            raise UnreadableRecord("the checksum does not match")
        if flags & _COMPRESSED:
            content = zlib.decompress(content)
        return _parse(content, omitted=bool(flags & _OMITTED))
    except (struct.error, zlib.error) as error:
        raise UnreadableRecord("the payload is damaged") from error


def is_compressed(record: bytes) -> bool:
    """Whether the response in a finished record is stored compressed.

    :param record: the whole record, which :func:`read_response` can read.
    """
    return bool(_PREFIX.unpack_from(record, HEAD_SIZE)[1] & _COMPRESSED)


def _pack(response: StoredResponse) -> bytes:
    status = response.status.encode("latin-1")
    parts = [_META.pack(len(status), len(response.headers)), status]
    for name, value in response.headers:
        raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
        parts += (_HEADER.pack(len(raw_name), len(raw_value)), raw_name, raw_value)
    return b"".join((*parts, response.body or b""))


def _parse(content: bytes, *, omitted: bool) -> StoredResponse:
    status_size, count = _META.unpack_from(content)
    at = _META.size
    status, at = content[at : at + status_size].decode("latin-1"), at + status_size
    headers = []
    for _ in range(count):
        name_size, value_size = _HEADER.unpack_from(content, at)
        at += _HEADER.size
        name, at = content[at : at + name_size].decode("latin-1"), at + name_size
        value, at = content[at : at + value_size].decode("latin-1"), at + value_size
        headers.append((name, value))
    if at > len(content):
        raise UnreadableRecord("the payload is truncated")
    return StoredResponse(status, tuple(headers), None if omitted else content[at:])
