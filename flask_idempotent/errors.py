"""The errors of the HTTP interface, as problem details (RFC 9457).

Those of the guard are all :class:`IdempotencyError`, an ``HTTPException``: an app overrides their answers with
``@app.errorhandler``, for the base or for one child.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any, ClassVar

from flask import has_request_context, request
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response

PROBLEM_JSON = "application/problem+json"


class Problem(HTTPException):
    """An HTTP error that answers with problem details. Its children differ in the class attributes.

    :param detail: what is wrong with this request and what to do; never anything of another party.
    :param retry_after: whole seconds after which the same request may be sent again.
    :param docs_url: a page that explains the codes; the problem's ``type`` is this URL with the code as its fragment.
    """

    code: int | None = None  # None: a handler for the base class is asked for every child, whatever its status
    problem_code: ClassVar[str]
    title: ClassVar[str]
    detail: str = ""
    retryable: bool = False

    def __init__(
        self, detail: str | None = None, *, retry_after: int | None = None, docs_url: str | None = None
    ) -> None:
        self.detail = detail or self.detail
        super().__init__(self.detail)
        self.retry_after = retry_after
        self.docs_url = docs_url

    def members(self) -> dict[str, Any]:
        """The members of the problem object."""
        return {
            "type": f"{self.docs_url}#{self.problem_code}" if self.docs_url else "about:blank",
            "title": self.title,
            "status": self.code,
            "detail": self.detail,
            "code": self.problem_code,
            "retryable": self.retryable,
        }

    def get_response(self, environ: Any = None, scope: Any = None) -> Response:
        """The answer: problem+json, or HTML for a client that prefers it."""
        if _prefers_html():
            response = Response(self._page(), self.code, content_type="text/html; charset=utf-8")
        else:
            response = Response(json.dumps(self.members()), self.code, content_type=PROBLEM_JSON)
        response.headers["Content-Language"] = "en"
        response.headers["Cache-Control"] = "no-store"
        response.vary.add("Accept")
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(max(self.retry_after, 1))
        if self.docs_url:
            response.headers["Link"] = f'<{self.members()["type"]}>; rel="describedby"'
        return response

    def _page(self) -> str:
        title, detail = escape(self.title), escape(self.detail)
        return f'<!doctype html>\n<html lang="en">\n<title>{title}</title>\n<h1>{title}</h1>\n<p>{detail}</p>\n'


class IdempotencyError(Problem):
    """Base of all answers that the guard gives instead of the view's.

    An app gives its own with ``@app.errorhandler(IdempotencyError)``; the handler gets ``code``, ``problem_code``,
    ``detail``, ``retryable`` and ``retry_after``.
    """

    problem_code = "idempotency-error"
    title = "The request could not be made idempotent"


class KeyMissing(IdempotencyError):
    """The route requires a key and the request has none."""

    code = 400
    problem_code = "key-missing"
    title = "Idempotency-Key is missing"
    detail = (
        "Send an Idempotency-Key header with a value that is new for each request you mean to make, such as a UUID."
    )


class KeyInvalid(IdempotencyError):
    """The request's key cannot be read."""

    code = 400
    problem_code = "key-invalid"
    title = "Idempotency-Key is invalid"


class KeyReused(IdempotencyError):
    """The key belongs to a request with another content."""

    code = 422
    problem_code = "key-reused"
    title = "Idempotency-Key is already used"
    detail = "This key came before with another request. Repeat that one unchanged, or use a new key for a new request."


class RequestInProgress(IdempotencyError):
    """The first request with the key has not ended."""

    code = 409
    problem_code = "request-in-progress"
    title = "A request is outstanding for this Idempotency-Key"
    detail = "The first request with this key is still being processed. Send the same request again in a moment."
    retryable = True


class OutcomeUnknown(IdempotencyError):
    """The worker of the first request died, and the route does not guess what it did."""

    code = 409
    problem_code = "outcome-unknown"
    title = "The outcome of this Idempotency-Key is unknown"
    detail = (
        "The first request with this key was interrupted. An operator has to find out what it did; do not send it anew."
    )


class StoreUnavailable(IdempotencyError):
    """The store cannot be asked, and the route does not run without it."""

    code = 503
    problem_code = "store-unavailable"
    title = "The idempotency store is unavailable"
    detail = "The request was not processed. Send it again with the same key."
    retryable = True


class RecordUnreadable(IdempotencyError):
    """What is stored under the key cannot be read; the view does not run again."""

    code = 500
    problem_code = "record-unreadable"
    title = "The stored outcome cannot be read"
    detail = (
        "This request may have been processed before, and its outcome is damaged. Ask the operator before you try anew."
    )


def _prefers_html() -> bool:
    if not has_request_context():
        return False
    accepted = request.accept_mimetypes
    json_quality = max(accepted[PROBLEM_JSON], accepted["application/json"])
    return bool(accepted["text/html"] > json_quality)
