"""What makes two requests the same request: a digest over their parts.

JSON counts by value: order of members and white space do not matter, order of arrays does. Two numbers are the same
when they are written as the same exact value and the same kind, so ``1``, ``1.0`` and ``true`` are three things, and
no digit is lost. A document whose value is not certain (duplicate members, malformed, nested too deeply, NaN, a
number beyond Python's limits) counts by its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from .digest import combine

# Numbers with a fraction are carried through the encoder as strings behind this mark. A JSON text can only contain the
# mark's first character as an escape, and texts with that escape count by their bytes.
_MARK: Final = "\x00"
MAX_DEPTH: Final = 100
MOST_KNOWN: Final = 1000  # documents, for each of which a digest is kept
SHORT: Final = 512  # bytes of a document that is itself kept with its digest, not another digest
MAX_EXPONENT: Final = 18  # characters
_NESTED: Final = (dict, list)
_WHITE_SPACE: Final = " \t\n\r"  # RFC 8259, section 2
_ESCAPED_MARK: Final = "\\u0000"


def fingerprint(
    *,
    query: Sequence[tuple[str, str]],
    content_type: str,
    body: bytes,
    credentials: bytes = b"",
    selectors: Sequence[tuple[str, str]] = (),
) -> bytes:
    """The digest of a request.

    :param query: the query's name and value pairs, in any order.
    :param content_type: media type without parameters.
    :param body: the body in a canonical form, from :func:`json_body`, :func:`form_body` or :func:`raw_body`.
    :param credentials: stands for the caller where nothing else does.
    :param selectors: the conditional and range headers (RFC 9110, sections 13 and 14) of the request.
    :return: 32 bytes.
    """
    asked = pairs(query) if query else _NO_PAIRS
    chosen = pairs(selectors) if selectors else _NO_PAIRS
    return combine("request fingerprint 1", asked, content_type.lower().encode(), body, credentials, chosen)


def pairs(items: Iterable[tuple[str, str]]) -> bytes:
    """Name and value pairs, sorted by name, in bytes that cannot be mistaken for other pairs.

    The values of one name keep their order: in a form of several rows, that is what says which belong together.
    """
    ordered = sorted(items, key=itemgetter(0))
    return combine("pairs", *(part.encode("utf-8", "surrogatepass") for pair in ordered for part in pair))


_NO_PAIRS: Final = pairs(())


def raw_body(body: bytes) -> bytes:
    """A body that counts by its bytes."""
    return streamed_body(hashlib.sha256(body).digest())


def streamed_body(digest: bytes) -> bytes:
    """The same for a body that was hashed while it was read.

    :param digest: the SHA-256 of its bytes.
    """
    return combine("raw", digest)


def form_body(fields: Iterable[tuple[str, str]], files: Iterable[tuple[str, str]] = ()) -> bytes:
    """A form's fields, and of a multipart form the pairs of field name and file digest."""
    return combine("form", pairs(fields), pairs(files))


def json_body(
    body: bytes, ignored: frozenset[str] = frozenset(), parsed: Callable[[Any], object] = lambda _value: None
) -> bytes:
    """A JSON document by its value.

    :param body: the text as it came.
    :param ignored: members of the outermost object that do not count.
    :param parsed: called with what ``json.loads`` makes of the text, where that is known when this is done.
    """
    seen = (body if len(body) <= SHORT else hashlib.sha256(body).digest(), len(body), ignored)
    known = _known.get(seen)
    if known is None:
        known = _json_body(body, ignored, parsed)
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[seen] = known
    return known


# What was parsed lately in this process, by its bytes: a retry repeats these, and need not be parsed again.
_known: dict[tuple[bytes, int, frozenset[str]], bytes] = {}


def _json_body(body: bytes, ignored: frozenset[str], parsed: Callable[[Any], object]) -> bytes:
    try:
        text = body.decode().strip(_WHITE_SPACE)
        if _ESCAPED_MARK in text:
            return raw_body(body)
        value, end = _DECODER.raw_decode(text)
        if end < len(text):
            return raw_body(body)
        if text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value):
            return raw_body(body)
        counted = value
        if isinstance(value, dict) and not ignored.isdisjoint(value):
            counted = {name: member for name, member in value.items() if name not in ignored}
        canonical = "".join(_CHUNKS(counted, 0))
        if counted is value and _ESCAPED_MARK not in canonical:  # no number in it had to be marked
            parsed(value)
        return combine("json", canonical.encode())
    except (ValueError, RecursionError):
        return raw_body(body)


def _is_deep(value: Any) -> bool:
    """Whether a document is nested beyond ``MAX_DEPTH``.

    The parser's own limit depends on the depth of the caller's stack, and a retry must not look like another request
    because it came by another way.
    """
    level = [value] if isinstance(value, _NESTED) else []
    for _ in range(MAX_DEPTH):
        parts = (each.values() if isinstance(each, dict) else each for each in level)
        level = [part for several in parts for part in several if isinstance(part, _NESTED)]
        if not level:
            return False
    return True


def _exact(number: str) -> str:
    """A number with a fraction or an exponent, as its sign, its significant digits and their power of ten."""
    mantissa, _, exponent = number.lower().partition("e")
    if len(exponent) > MAX_EXPONENT:
        raise ValueError("an exponent beyond all use")
    sign = int(mantissa.startswith("-"))
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    digits = (whole + fraction).lstrip("0")
    significant = digits.rstrip("0")
    if not significant:
        return f"{_MARK}{sign}:0"
    power = int(exponent or 0) - len(fraction) + len(digits) - len(significant)
    return f"{_MARK}{sign}:{significant}:{power}"


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _members(items: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(items)
    if len(members) != len(items):
        raise ValueError("duplicate members")
    return members


# Made once: json.loads and json.dumps make new ones for each call with options. What was parsed holds no circle.
_DECODER: Final = json.JSONDecoder(parse_float=_exact, parse_constant=_refuse, object_pairs_hook=_members)
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), check_circular=False)
_IN_C: Final = getattr(json.encoder, "c_make_encoder", None)  # what ``encode`` makes anew for each call; not everywhere
_CHUNKS: Final[Callable[..., Iterable[str]]] = (
    _IN_C(None, _ENCODER.default, json.encoder.encode_basestring_ascii, None, ":", ",", True, False, True)
    if _IN_C
    else _ENCODER.iterencode
)
