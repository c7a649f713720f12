"""What a stored response costs to pack and to read, by our own format and by others, and what compressing it would."""

from __future__ import annotations

import base64
import bz2
import importlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flask_idempotent.core.record import Head, State, StoredResponse, pack_payload, read_response

from .measure import Call, take_turns
from .requests import orders
from .results import write
from .table import Cell, markdown, median

TITLE = "Records"
KIB = (1, 10, 100)
HEAD = Head(State.DONE, 1, bytes(16), bytes(32), 4_000_000_000_000)
HEADERS = (("Content-Type", "application/json"), ("Location", "/orders/8e03978e"), ("Content-Length", "300"))
OTHERS = ("msgpack", "msgspec", "zstandard")
FORMATS_TEXT = """
A response of 300 bytes with three headers. Ours is checked by a checksum when it is read, the others are not.
"""
PACKERS_TEXT = """
JSON of rows with numbers and words; *smaller* is how many times. Ours is zlib at level 1, from
`IDEMPOTENCY_COMPRESS_OVER` on, and only where it saves space.
"""


class Codec(NamedTuple):
    """A way to bytes and back."""

    pack: Callable[[Any], bytes]
    read: Callable[[bytes], Any]


def main() -> None:
    """Measure, write both tables."""
    formats = markdown(("format", "bytes", "pack us", "read us"), _formats(2000))
    packers = markdown(("compression", "KiB", "smaller", "pack us", "read us"), _packers(100))
    text = f"### Format\n{FORMATS_TEXT}\n{formats}\n\n### Compression\n{PACKERS_TEXT}\n{packers}\n\n{_missing()}"
    write(TITLE, text, *OTHERS)


def _formats(rounds: int) -> Iterator[list[Cell]]:
    response = StoredResponse("201 CREATED", HEADERS, b"y" * 300)
    head = HEAD.pack()
    codecs = {"ours": Codec(lambda r: head + pack_payload(head, r, 1024), read_response)}
    codecs["JSON, the body in base 64"] = Codec(_to_json, _from_json)
    if msgpack := _module("msgpack"):
        codecs["msgpack"] = Codec(lambda r: msgpack.packb(tuple(r)), lambda raw: StoredResponse(*msgpack.unpackb(raw)))
    if msgspec := _module("msgspec"):
        decoder = msgspec.msgpack.Decoder(StoredResponse)
        codecs["msgspec"] = Codec(msgspec.msgpack.Encoder().encode, decoder.decode)
    for name, size, packing, reading in _measured(codecs, response, rounds):
        yield [name, str(size), packing, reading]


def _packers(rounds: int) -> Iterator[list[Cell]]:
    packers = {
        "zlib 1, ours": Codec(lambda data: zlib.compress(data, 1), zlib.decompress),
        "zlib 6": Codec(lambda data: zlib.compress(data, 6), zlib.decompress),
        "bz2": Codec(bz2.compress, bz2.decompress),
        "lzma": Codec(lzma.compress, lzma.decompress),
    }
    if zstandard := _module("zstandard"):
        writer, reader = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
        packers["zstandard 1"] = Codec(writer.compress, reader.decompress)
    for kib in KIB:
        data = json.dumps(orders(kib * 1024)).encode()
        for name, size, packing, reading in _measured(packers, data, rounds):
            yield [name, str(kib), len(data) / size, packing, reading]


def _measured(codecs: dict[str, Codec], value: Any, rounds: int) -> Iterator[tuple[str, int, float, float]]:
    """Name, bytes, and microseconds for packing and for reading."""
    calls: dict[str, Call] = {}
    packed = {name: codec.pack(value) for name, codec in codecs.items()}
    for name, codec in codecs.items():
        calls[f"pack {name}"] = lambda _, codec=codec: codec.pack(value)  # type: ignore[misc]
        calls[f"read {name}"] = lambda _, codec=codec, name=name: codec.read(packed[name])  # type: ignore[misc]
    times = {name: median(each) for name, each in take_turns(calls, rounds).items()}
    for name in codecs:
        yield name, len(packed[name]), times[f"pack {name}"], times[f"read {name}"]


def _to_json(response: StoredResponse) -> bytes:
    return json.dumps([response.status, response.headers, base64.b64encode(response.body or b"").decode()]).encode()


def _from_json(raw: bytes) -> StoredResponse:
    status, headers, body = json.loads(raw)
    return StoredResponse(status, tuple(map(tuple, headers)), base64.b64decode(body))


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _missing() -> str:
    missing = [name for name in OTHERS if _module(name) is None]
    return f"Not installed (`pip install -r bench/peers.txt`): {', '.join(missing)}." if missing else ""


if __name__ == "__main__":
    main()
