"""The part of Stripe's API (v1) that the sandbox speaks, for the real client over HTTP."""

from __future__ import annotations

from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from .account import current_account
from .errors import ApiError
from .event_api import event_api
from .execution import answer, request_id, respond
from .payment_api import payment_api
from .session_api import session_api

api = Blueprint("api", __name__, url_prefix="/v1")
for part in (session_api, payment_api, event_api):
    api.register_blueprint(part)


@api.before_request
def authenticate() -> None:
    """Accept secret test keys only; a live key must never end up here."""
    credentials = request.authorization
    key = credentials.token if credentials is not None and credentials.type == "bearer" else None
    if not key or not key.startswith(("sk_test_", "rk_test_")):
        if request.method == "POST":
            current_account().count("refused")
        raise ApiError(401, "Send any test key, as 'Authorization: Bearer sk_test_…'.", code="api_key_invalid")


@api.after_request
def add_headers(response: Response) -> Response:
    """Give each answer the headers that Stripe's clients read."""
    response.headers["Request-Id"] = request_id()
    for name in ("Idempotency-Key", "Stripe-Version"):
        if name in request.headers:
            response.headers[name] = request.headers[name]
    return response


@api.errorhandler(ApiError)
def show_error(error: ApiError) -> Response:
    """Answer with Stripe's error object."""
    return respond(answer(error.status, error.body()))


@api.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> Response:
    """Answer what Flask refuses (an unreadable request, say) in Stripe's format, too."""
    return show_error(ApiError(error.code or 500, error.description or error.name))


@api.route("/<path:path>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(path: str) -> Response:
    """Say that the sandbox does not know this part of Stripe."""
    raise ApiError(404, f"The sandbox does not know {request.method} /v1/{path}.", code="url_invalid")
