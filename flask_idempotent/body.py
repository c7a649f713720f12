"""Reading a request's body for its fingerprint, and leaving it to the view as if nobody had."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import IO, Any, Final, NamedTuple
from weakref import ref

from flask import Request
from flask.json.provider import DefaultJSONProvider
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wsgi import LimitedStream

from .core.fingerprint import form_body, json_body, raw_body, streamed_body

MEMORY_LIMIT: Final = 512 * 1024  # bytes; what is longer goes to a temporary file
_SHORT_DIGITS: Final = 5  # of a length of less than 100 kB
_CHUNK: Final = 64 * 1024
_JSON: Final = "application/json"
_MULTIPART: Final = "multipart/form-data"
FORMS: Final = (_MULTIPART, "application/x-www-form-urlencoded")
_FLASKS_LIMIT: Final = Request.max_content_length
_IS_FLASKS: Final = getattr(getattr(_FLASKS_LIMIT, "fget", None), "__module__", "") == "flask.wrappers"  # not patched

Fields = Iterable[tuple[str, str]]
Files = Iterable[tuple[str, FileStorage]]


class Form(NamedTuple):
    """What counts of a form.

    :param digest: over everything but the ignored fields.
    :param fields: names and values; empty where it was not parsed.
    :param refusal: why not; its bytes count then, and the view meets the limit when it asks for it.
    """

    digest: bytes
    fields: tuple[tuple[str, str], ...] = ()
    refusal: RequestEntityTooLarge | None = None


def digest_body(request: Request, mimetype: str, ignored: frozenset[str], config: Mapping[str, Any]) -> bytes:
    """Read the body, or what a hook of the app has left of it. The request is as unread afterwards as it was before:
    ``stream``, ``get_data``, ``get_json``, ``form`` and ``files`` give the view what they would have given it.

    :param mimetype: the request's.
    :param ignored: form fields, and members of a JSON object, that do not count.
    :param config: the app's.
    :return: its canonical bytes, hashed.
    :raises RequestEntityTooLarge: the body is over the app's MAX_CONTENT_LENGTH.
    """
    if mimetype == _JSON or request.is_json:
        data = _data(request, config)
        return json_body(data, ignored, partial(_spare_parsing, request, data))
    if mimetype in FORMS:
        return read_form(request, mimetype, ignored, config).digest
    if "_cached_data" in request.__dict__:
        return raw_body(_data(request, config))
    return streamed_body(_spool(request)[1])


class _Parsed:
    """Stands where Werkzeug's request keeps the JSON that it has parsed, and gives what the body was parsed to for its
    digest: once somebody asks, and nobody has read the body or changed anything about it. Otherwise it goes away.

    :param request: whose body it is; it is not kept alive.
    :param data: the body.
    :param value: what ``json.loads`` makes of it.
    """

    def __init__(self, request: Request, data: bytes, value: Any) -> None:
        self._request = ref(request)
        self._provider = request.json_module
        self._stream: IO[bytes] = vars(request)["stream"]  # see _rewind
        self._data = data
        self._value = value
        self._given = False

    def __getitem__(self, silent: int) -> Any:
        """What ``Request.get_json`` looks for; Ellipsis where it has to parse."""
        if self._given:  # a copy of the request asks
            return self._value
        request = self._request()
        if request is None:
            return ...
        found, stream = vars(request), self._stream
        found.pop("_cached_json", None)  # another thread may ask, too
        if found.get("stream") is not stream or stream.tell() or request.json_module is not self._provider:
            return ...
        self._given = True
        stream.seek(0, io.SEEK_END)  # as if it had been read for this
        found["_cached_data"], found["_cached_json"] = self._data, (self._value, self._value)
        return self._value


def _spare_parsing(request: Request, data: bytes, value: Any) -> None:
    """Let the view have what the body was parsed to for its digest, where the app would parse it just so."""
    provider, found = request.json_module, vars(request)
    if type(request) is not Request or type(provider) is not DefaultJSONProvider or "loads" in vars(provider):
        return
    if "_cached_data" not in found and "_cached_json" not in found:
        found["_cached_json"] = _Parsed(request, data, value)


def read_form(request: Request, mimetype: str, ignored: frozenset[str], config: Mapping[str, Any]) -> Form:
    """Read a body that says it is a form, as :func:`digest_body` does and with the same parameters."""
    if "form" in request.__dict__:
        return _of_form(request.form.items(multi=True), request.files.items(multi=True), ignored)
    if mimetype == _MULTIPART and "_cached_data" not in request.__dict__:
        spool, digest = _spool(request)
        return _parsed(request, spool, ignored) or Form(streamed_body(digest))
    data = _data(request, config)
    return _parsed(request, io.BytesIO(data), ignored) or Form(raw_body(data))


def _parsed(request: Request, stream: IO[bytes], ignored: frozenset[str]) -> Form | None:
    """Parse a form from its bytes, holding no file in memory; None when there are bytes, but no form in them."""
    parser = request.make_form_data_parser()
    parser.stream_factory = _digest_sink
    try:
        _, form, files = parser.parse(stream, request.mimetype, request.content_length, request.mimetype_params)
    except RequestEntityTooLarge as refusal:
        return Form(_rest(stream), refusal=refusal)
    finally:
        stream.seek(0)
    empty = not stream.read(1)
    stream.seek(0)
    return _of_form(form.items(multi=True), files.items(multi=True), ignored) if form or files or empty else None


def _rest(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return streamed_body(hashlib.file_digest(stream, "sha256").digest())  # type: ignore[arg-type]


def _of_form(fields: Fields, files: Files, ignored: frozenset[str]) -> Form:
    fields = tuple(fields)
    return Form(form_body((pair for pair in fields if pair[0] not in ignored), _digests(files)), fields)


def _digests(files: Files) -> Iterator[tuple[str, str]]:
    """Field name, and in one string digest, type and name of the file, for each file of a form."""
    for field, file in files:
        if isinstance(file.stream, _DigestSink):
            digest = file.stream.digest.hexdigest()
        else:
            at = file.stream.tell()
            file.stream.seek(0)
            digest = hashlib.file_digest(file.stream, "sha256").hexdigest()  # type: ignore[arg-type]
            file.stream.seek(at)
        yield field, f"{digest} {file.content_type} {file.filename}"


def _data(request: Request, config: Mapping[str, Any]) -> bytes:
    """The whole body in memory, where the view is going to have it, too."""
    if "_cached_data" in request.__dict__:
        return request.get_data()
    data = _at_once(request, config)
    if data is None:
        data = request.stream.read()
    _rewind(request, io.BytesIO(data))
    return data


def _at_once(request: Request, config: Mapping[str, Any]) -> bytes | None:
    """A short body of known length, by one read of what the server gives; None for any other body.

    Werkzeug's stream gives the same, but takes longer over it than we take to parse a small document.
    """
    environ = request.environ
    length = environ.get("CONTENT_LENGTH", "")
    if not (length.isdigit() and length.isascii() and len(length) <= _SHORT_DIGITS):
        return None
    if "stream" in request.__dict__ or "wsgi.input_terminated" in environ or "HTTP_TRANSFER_ENCODING" in environ:
        return None
    size, limit = int(length), _limit(request, config)
    if limit is not None and size > limit:
        return None
    try:
        data: bytes = environ["wsgi.input"].read(size)
    except (OSError, ValueError):  # the client has gone
        data = b""
    missing = size - len(data)
    return data + LimitedStream(environ["wsgi.input"], missing).read() if missing else data


def _limit(request: Request, config: Mapping[str, Any]) -> int | None:
    """The most bytes that a body may have. Flask's own property says the same, on a detour."""
    is_flasks = _IS_FLASKS and type(request).max_content_length is _FLASKS_LIMIT
    if is_flasks and getattr(request, "_max_content_length", None) is None:  # a hook may have set it for this request
        limit: int | None = config["MAX_CONTENT_LENGTH"]
        return limit
    return request.max_content_length


def _spool(request: Request) -> tuple[IO[bytes], bytes]:
    """Copy the body to where it can be read twice, and hash it on the way."""
    spool, digest, size = _Spool(max_size=MEMORY_LIMIT), hashlib.sha256(), 0
    # A chunked body has no length: at the app's limit Werkzeug takes it for complete, but for a form, and so do we.
    unlimited = request.content_length is not None or request.mimetype == _MULTIPART
    limit = None if unlimited else request.max_content_length
    while size != limit and (chunk := request.stream.read(_CHUNK)):
        size += len(chunk)
        digest.update(chunk)
        spool.write(chunk)
    spool.seek(0)
    _rewind(request, spool)
    return spool, digest.digest()


def _rewind(request: Request, stream: IO[bytes]) -> None:
    request.environ["wsgi.input"] = stream
    request.environ["wsgi.input_terminated"] = True
    request.__dict__["stream"] = stream


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """Lives as long as somebody reads it; an answer may be streamed from it after the request's context has gone."""

    def __del__(self) -> None:
        self.close()


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
