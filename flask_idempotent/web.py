"""From a Flask request to key and fingerprint, and from a view's response to a stored one and back."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple
from uuid import UUID

from flask import Flask, Request, Response
from werkzeug.datastructures import Headers

from .body import FORMS, digest_body, read_form
from .config import Settings
from .core.digest import combine
from .core.fingerprint import fingerprint
from .core.key import InvalidKey, parse, scoped, storage_key
from .core.record import StoredResponse
from .entry import derivation_seed
from .errors import KeyInvalid

OMITTED_HEADER: Final = "Idempotency-Replay"
DEGRADED_HEADER: Final = "Idempotency-Degraded"
STORED_HEADER: Final = "Idempotency-Stored"
STRIPE_V1: Final = "stripe-v1"

# Hop-by-hop fields (RFC 9110, section 7.6.1), and those that are made anew for each response.
_NOT_STORED: Final = frozenset(
    "connection keep-alive proxy-connection te trailer transfer-encoding upgrade"
    " set-cookie date server content-length".split()
)
# Fields that choose which part or version of a resource is meant: with others, it is another request.
_SELECTORS: Final = (
    "HTTP_RANGE",
    "HTTP_IF_RANGE",
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)
_REFUSALS: Final = frozenset({401, 403, 408, 425, 429})
WHOLE_REQUEST: Final = "the whole request"

Principal = str | int | bytes | UUID | tuple[Any, ...] | None


class Fate(Enum):
    """What becomes of the record after a view has answered."""

    KEEP = "keep"
    FORGET = "forget"
    FAIL = "fail"


class Incoming(NamedTuple):
    """A request as the guard sees it.

    :param key: the client's key.
    :param digest: 32 bytes for the key within its scope.
    :param storage_key: the name of its record.
    :param fingerprint: 32 bytes for the request itself.
    """

    key: str
    digest: bytes
    storage_key: str
    fingerprint: bytes

    def seed(self) -> bytes:
        """What derived keys are made of."""
        return derivation_seed(self.digest, self.fingerprint)


class Site(NamedTuple):
    """What stays the same for all requests to an app. (Flask works these out anew whenever they are asked for.)

    :param name: the app's.
    :param by_host: whether it tells its routes apart by host, so that a key counts for one host.
    """

    name: str
    by_host: bool


class Readers(NamedTuple):
    """What a route reads differently.

    :param key: called with the request, returns the key or None; instead of header and form field.
    :param fingerprint: called with the request, returns bytes or str that stand for it; None: nothing does, and
        whatever comes under a key is the same request. By default the whole request counts.
    """

    key: Callable[[Request], str | None] | None = None
    fingerprint: Callable[[Request], bytes | str] | str | None = WHOLE_REQUEST


def read(
    request: Request, app: Flask, site: Site, settings: Settings, readers: Readers, principal: Principal
) -> Incoming | None:
    """Key, scope and fingerprint of a request; None when it has no key.

    :param site: the app's, from :func:`site_of`.
    :param principal: who calls; None when nobody can tell, then the Authorization header counts as part of the request.
    :raises KeyInvalid: there is a key, but it cannot be read.
    """
    form, mimetype = None, request.mimetype
    if readers.key is not None:
        raw = readers.key(request)
    else:
        raw = request.headers.get(settings.header)
        if raw is None and mimetype in FORMS:
            form = read_form(request, mimetype, settings.uncounted_fields, app.config)
            if form.refusal is not None:
                raise form.refusal
            sent = [value for name, value in form.fields if name == settings.form_field]
            raw = ", ".join(sent) if sent else None
    if raw is None:
        return None
    try:
        key = parse(raw, settings.max_key_length)
    except InvalidKey as error:
        raise KeyInvalid(f"The key was not accepted: {error}.", docs_url=settings.docs_url) from error
    digest = digest_key(request, site, principal, key)
    known = principal is not None and is_known(principal)
    credentials = b"" if known else request.environ.get("HTTP_AUTHORIZATION", "").encode()
    if readers.fingerprint == WHOLE_REQUEST:
        body = form.digest if form else digest_body(request, mimetype, settings.uncounted_fields, app.config)
        mark = _fingerprint(request, mimetype, settings, body, credentials)
    elif callable(readers.fingerprint):
        told = readers.fingerprint(request)
        mark = combine("told fingerprint 1", told.encode() if isinstance(told, str) else told, credentials)
    else:
        mark = combine("no fingerprint 1", credentials)
    return Incoming(key, digest, storage_key(settings.key_prefix, digest), mark)


def digest_key(request: Request, site: Site, principal: Principal, key: str) -> bytes:
    """32 bytes that stand for the key of a request, which is unique to app, caller, method and path.

    :param site: of the app that it is for.
    :param principal: who calls; None when nobody can tell.
    """
    path = f"{request.root_path.rstrip('/')}{request.path}"  # with the mount point
    place = f"//{request.host}{path}" if site.by_host else path
    return scoped(site.name, request.method, place, b"" if principal is None else principal_bytes(principal), key)


def is_known(principal: Principal) -> bool:
    """Whether a principal names the caller; a tuple does when all of its parts are known."""
    return all(map(is_known, principal)) if isinstance(principal, tuple) else principal is not None


def principal_bytes(principal: Principal) -> bytes:
    """A principal in bytes that no other principal shares; empty where it is None.

    :raises TypeError: it is not made of str, int, bytes, UUID and tuples of these.
    """
    if principal is None:
        return b""
    if isinstance(principal, tuple):
        return combine("principal tuple", *map(principal_bytes, principal))
    if isinstance(principal, bool) or not isinstance(principal, str | int | bytes | UUID):
        raise TypeError(
            f"a principal must be a str, int, bytes, UUID or a tuple of these, not {type(principal).__name__}; "
            "return the caller's id from the principal_loader"
        )
    raw = principal if isinstance(principal, bytes) else str(principal).encode()
    return combine(f"principal {type(principal).__name__}", raw)


def flask_login_user(app: Flask) -> str | None:
    """The id of the user that Flask-Login has authenticated, where the app uses Flask-Login."""
    login = sys.modules.get("flask_login")
    if login is None or not hasattr(app, "login_manager"):
        return None
    user = login.current_user
    return str(user.get_id()) if user.is_authenticated else None


def site_of(app: Flask) -> Site:
    """What :class:`Site` says of an app whose set-up is done."""
    return Site(app.name, app.url_map.host_matching or app.subdomain_matching)


def _fingerprint(request: Request, mimetype: str, settings: Settings, body: bytes, credentials: bytes) -> bytes:
    query, selectors, environ = [], [], request.environ
    if request.query_string:
        query = [pair for pair in request.args.items(multi=True) if pair[0] not in settings.ignored_fields]
    if not environ.keys().isdisjoint(_SELECTORS):
        selectors = [(name, environ[name]) for name in _SELECTORS if name in environ]
    return fingerprint(
        selectors=selectors,
        query=query,
        content_type=mimetype,
        body=body,
        credentials=hashlib.sha256(credentials).digest() if credentials else b"",
    )


def fate(response: Response, save: Callable[[Response], bool | Fate] | str | None) -> Fate:
    """What the outcome policy says about a response.

    :param save: the route's own predicate, which may also name the fate; ``"stripe-v1"``; or None for the default.
    """
    status = response.status_code
    if save == STRIPE_V1:
        kept = status < 400 or status >= 500 or status == 402
    elif callable(save):
        said = save(response)
        if isinstance(said, Fate):
            return said
        kept = said
    else:
        refused = status in _REFUSALS or (400 <= status < 500 and "Retry-After" in response.headers)
        kept = status < 500 and not refused
    if kept:
        return Fate.KEEP
    return Fate.FAIL if status >= 500 else Fate.FORGET


def stored_headers(response: Response, settings: Settings) -> tuple[tuple[str, str], ...]:
    """The headers that a replay repeats. One that marks a replay is taken off the response: this is none."""
    stored, mark, marked = [], settings.replay_header.lower(), False
    for name, value in response.headers:
        lower = name.lower()
        if lower == mark:
            marked = True
        elif lower not in _NOT_STORED:
            stored.append((name, value))
    if marked:
        response.headers.remove(mark)
    return tuple(stored)


def mark_degraded(response: Response) -> Response:
    """Say that the view ran without the store."""
    response.headers[DEGRADED_HEADER] = "true"
    return response


def mark_unstored(response: Response) -> None:
    """Say that a repetition will not get this answer: another worker has the key, or the store is gone."""
    response.headers[STORED_HEADER] = "false"


def replay(stored: StoredResponse, app: Flask, settings: Settings) -> Response:
    """The stored answer again, marked as a replay."""
    headers = Headers(stored.headers)
    headers[settings.replay_header] = "true"
    if stored.body is None:
        headers[OMITTED_HEADER] = "omitted"
    told = [*headers]
    response = app.response_class([stored.body or b""], stored.status, headers)
    if [*response.headers] != told:  # a content type where there was none, or what the app's own class adds
        response.headers = Headers(told)
    return response
