"""The client's key: parsing, and the storage key that is made of it.

The header is a structured-field string (draft-ietf-httpapi-idempotency-key-header-07, RFC 9651 section 3.3.3);
Stripe's clients and many others send the bare value. Both spell the same key.
"""

from __future__ import annotations

import re
from binascii import b2a_base64
from typing import Final

from .digest import combine

# RFC 9651, section 3.1.2: a parameter is ";", spaces, a name, and optionally "=" and a bare item of one of these types.
_SF_STRING: Final = r'"(?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*"'
_SF_NAME: Final = r"[A-Za-z*][\w!#$%&'*+\-.^`|~:/]*"
_SF_NUMBER: Final = r"-?[0-9]{1,15}(?:\.[0-9]{1,3})?"
_SF_OTHER: Final = r":[\w+/=]*:|\?[01]|@-?[0-9]{1,15}|%\"[\x20\x21\x23-\x7e]*\""  # bytes, boolean, date, display string
_PARAMETERS: Final = rf"(?:; *[a-z*][a-z0-9_\-.*]*(?:=(?:{_SF_STRING}|{_SF_NAME}|{_SF_NUMBER}|{_SF_OTHER}))?)*"
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/-]+")
_QUOTED: Final = rf"({_SF_STRING}){_PARAMETERS}"
_BARE: Final = rf"([\x21\x23-\x2b\x2d-\x3a\x3c-\x7e]+){_PARAMETERS}"  # no quote, comma, semicolon

_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")  # RFC 4648, section 5


class InvalidKey(ValueError):
    """The value cannot be a key; the message says why, and never repeats the value."""


def parse(raw: str, max_length: int) -> str:
    """The key in a header's or a form field's value.

    :param raw: the value as it came, quoted or bare, parameters allowed.
    :param max_length: the longest key that is taken, in bytes.
    :raises InvalidKey: with the reason.
    """
    if len(raw) <= max_length and _PLAIN.fullmatch(raw):  # as most are
        return raw
    value = raw.strip(" \t")
    if not value:
        raise InvalidKey("it is empty")
    if not value.isascii() or not value.isprintable():
        raise InvalidKey("it contains control or non-ASCII characters")
    match = re.fullmatch(_QUOTED if value.startswith('"') else _BARE, value, re.ASCII)  # compiled when first needed
    if match is None:
        raise InvalidKey('it is neither a quoted string such as "8e03978e" nor one plain word; send exactly one key')
    key = match[1]
    if key.startswith('"'):
        key = re.sub(r"\\(.)", r"\1", key[1:-1])
    if not key.strip():
        raise InvalidKey("it is blank")
    if len(key) > max_length:
        raise InvalidKey(f"it is longer than {max_length} bytes")
    return key


def scoped(app: str, method: str, path: str, principal: bytes, key: str) -> bytes:
    """32 bytes that stand for a client's key within what it is unique in. Each part counts.

    :param app: the application's name.
    :param method: the request's method.
    :param path: the request's path with the mount point; with the host where the app routes by host.
    :param principal: who calls, as bytes; empty when nobody can tell.
    :param key: the client's.
    """
    raw_path = path.encode("utf-8", "surrogateescape")
    return combine("idempotency key 1", app.encode(), method.encode(), raw_path, principal, key.encode())


def storage_key(prefix: str, digest: bytes) -> str:
    """The name of a record: prefix and digest. The braces put a record and its journal into one Redis Cluster slot."""
    return f"{prefix}{{{b2a_base64(digest, newline=False).translate(_URL_SAFE, b'=').decode()}}}"
