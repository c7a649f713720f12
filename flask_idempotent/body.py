"""Reading a request's body for its fingerprint, and leaving it to the view as if nobody had."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

from flask import Request

from .core.fingerprint import form_body, json_body, raw_body, streamed_body

MEMORY_LIMIT: Final = 512 * 1024  # bytes; what is longer goes to a temporary file
_CHUNK: Final = 64 * 1024
_SPOOL: Final = "flask_idempotent.spool"
_MULTIPART: Final = "multipart/form-data"
_FORMS: Final = (_MULTIPART, "application/x-www-form-urlencoded")


@dataclass(frozen=True, slots=True)
class Body:
    """What counts of a body.

    :param digest: its canonical bytes, hashed; for a form over everything but the ignored fields.
    :param fields: a form's names and values; empty for any other body.
    """

    digest: bytes
    fields: tuple[tuple[str, str], ...] = ()


def is_form(request: Request) -> bool:
    """Whether the body is an HTML form's."""
    return request.mimetype in _FORMS


def read_body(request: Request, ignored: frozenset[str]) -> Body:
    """Read the body. Afterwards ``stream``, ``get_data``, ``get_json``, ``form`` and ``files`` give the view what they
    would have given it before.

    :param ignored: form fields, and members of a JSON object, that do not count.
    :raises RequestEntityTooLarge: the body is over the app's own limits.
    """
    if "form" in request.__dict__:  # a hook of the app was here first
        return _form_body(request.form.items(multi=True), _digests(request.files.items(multi=True)), ignored)
    if request.mimetype == _MULTIPART:
        return _multipart_body(request, ignored)
    if request.is_json or is_form(request) or "_cached_data" in request.__dict__:
        data = request.get_data()
        fields = tuple(request.form.items(multi=True)) if is_form(request) else ()
        _rewind(request, io.BytesIO(data))
        if fields:
            return _form_body(fields, (), ignored)
        return Body(json_body(data, ignored) if request.is_json else raw_body(data))
    return Body(streamed_body(_spool(request)[1]))


def close_spool(environ: dict[str, Any]) -> None:
    """Give back the temporary file of a request that is over."""
    spool = environ.pop(_SPOOL, None)
    if spool is not None:
        spool.close()


def _multipart_body(request: Request, ignored: frozenset[str]) -> Body:
    """Parse once for the digests, holding no file in memory, and leave the bytes unparsed for the view."""
    spool, digest = _spool(request)
    parser = request.make_form_data_parser()
    parser.stream_factory = _digest_sink
    _, form, files = parser.parse(spool, request.mimetype, request.content_length, request.mimetype_params)
    spool.seek(0)
    if not form and not files:  # empty, or not really multipart
        return Body(streamed_body(digest))
    return _form_body(form.items(multi=True), _digests(files.items(multi=True)), ignored)


def _form_body(fields: Any, files: Any, ignored: frozenset[str]) -> Body:
    fields = tuple(fields)
    return Body(form_body(((name, value) for name, value in fields if name not in ignored), files), fields)


def _digests(files: Any) -> Iterator[tuple[str, str]]:
    """Field name, and file name, type and digest in one string, of each file of a form."""
    for field, file in files:
        if isinstance(file.stream, _DigestSink):
            digest = file.stream.digest.hexdigest()
        else:
            digest = hashlib.file_digest(file.stream, "sha256").hexdigest()
            file.stream.seek(0)
        yield field, f"{digest} {file.content_type} {file.filename}"


def _spool(request: Request) -> tuple[IO[bytes], bytes]:
    """Copy the body to where it can be read twice, and hash it on the way."""
    spool = tempfile.SpooledTemporaryFile(max_size=MEMORY_LIMIT)  # noqa: SIM115 - closed when the request is over
    request.environ[_SPOOL] = spool
    digest = hashlib.sha256()
    while chunk := request.stream.read(_CHUNK):
        digest.update(chunk)
        spool.write(chunk)
    spool.seek(0)
    _rewind(request, spool)
    return spool, digest.digest()


def _rewind(request: Request, stream: IO[bytes]) -> None:
    request.environ["wsgi.input"] = stream
    request.environ["wsgi.input_terminated"] = True
    request.__dict__["stream"] = stream


class _DigestSink(io.BytesIO):
    """Takes a file of a multipart form and keeps nothing of it but the digest."""

    def __init__(self) -> None:
        super().__init__()
        self.digest = hashlib.sha256()

    def write(self, data: Any, /) -> int:
        self.digest.update(data)
        return len(data)


def _digest_sink(*_: Any, **__: Any) -> IO[bytes]:
    """What Werkzeug's form parser calls for each file."""
    return _DigestSink()
