"""From what an operator has in hand, a storage key from a log or a client's key, to the names of records."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final
from uuid import UUID

from flask import Flask
from werkzeug.test import EnvironBuilder

from .config import Settings
from .core.key import InvalidKey, parse, storage_key
from .web import Principal, digest_key, site_of

_STORAGE_KEY: Final = re.compile(r"(.*)\{[\w-]{43}\}", re.ASCII | re.DOTALL)


class CannotLookUp(ValueError):
    """What is given names no record; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """What a client's key counts for.

    :param method: of the request.
    :param path: with the mount point; a query does not count.
    :param host: as the client named it, where the app tells its routes apart by host.
    :param principal: what the principal loader returns, as text; several for a tuple, none where nobody can tell.
    """

    method: str
    path: str
    host: str | None = None
    principal: Sequence[str] = ()


def storage_keys(app: Flask, settings: Settings, key: str, request: ClientRequest | None) -> list[str]:
    """The names under which a record may stand.

    Text does not tell of what type a principal was: each type that can be meant gives a name.

    :param key: a storage key, or with ``request`` a client's key.
    :raises CannotLookUp: with what is missing.
    """
    if request is None:
        return [_storage_key(settings.key_prefix, key)]
    site = site_of(app)
    if site.by_host and request.host is None:
        raise CannotLookUp("this app tells its routes apart by host: add --host")
    if not request.path.startswith("/"):
        raise CannotLookUp(f"--path must begin with a slash, unlike {request.path!r}")
    try:
        client_key = parse(key, settings.max_key_length)
    except InvalidKey as error:
        raise CannotLookUp(f"this cannot be a client's key: {error}") from error
    builder = EnvironBuilder(request.path, f"http://{request.host or 'localhost'}/", method=request.method.upper())
    asked = app.request_class(builder.get_environ())
    digests = [digest_key(asked, site, principal, client_key) for principal in _principals(request.principal)]
    return [storage_key(settings.key_prefix, digest) for digest in digests]


def _storage_key(prefix: str, key: str) -> str:
    match = _STORAGE_KEY.fullmatch(key)
    if match is None:
        raise CannotLookUp(
            f"this is no storage key such as {prefix}{{...}}; for a client's key say of which request it is, "
            "by --path (and --method, --principal, --host)"
        )
    if match[1] != prefix:
        raise CannotLookUp(f"this storage key is of another app: here they begin with {prefix!r}")
    return key


def _principals(texts: Sequence[str]) -> Iterator[Principal]:
    if not texts:
        yield None
    for parts in product(*map(_readings, texts)):
        if len(parts) == 1:
            yield parts[0]
        elif parts:
            yield parts


def _readings(text: str) -> list[str | int | UUID]:
    """The values that a text may stand for."""
    readings: list[str | int | UUID] = [text]
    for read in (int, UUID):
        try:
            value = read(text)
        except ValueError:
            continue
        if str(value) == text.lower():
            readings.append(value)
    return readings
