"""The part of Stripe's API (v1) that the sandbox speaks: Checkout Sessions, for the real client over HTTP."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from flask import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException

from .account import current_account
from .errors import ApiError, invalid
from .faults import injected_error
from .forms import Tree, as_list, decode
from .idempotency import MAX_KEY_LENGTH, Answer, InUse, Mismatch, PostRequest, Replay
from .objects import line_list, session_object
from .params import read_new_session
from .sessions import Session

api = Blueprint("api", __name__, url_prefix="/v1")


@dataclass(frozen=True)
class Outcome:
    """What an execution led to, and whether the caller shall never hear of it."""

    answer: Answer
    lost: bool = False


@api.before_request
def authenticate() -> None:
    """Accept secret test keys only; a live key must never end up here."""
    credentials = request.authorization
    key = credentials.token if credentials is not None and credentials.type == "bearer" else None
    if not key or not key.startswith("sk_test_"):
        if request.method == "POST":
            current_account().count("refused")
        raise ApiError(401, "Send any test key, as 'Authorization: Bearer sk_test_…'.", code="api_key_invalid")


@api.after_request
def add_headers(response: Response) -> Response:
    """Give each answer the headers that Stripe's clients read."""
    response.headers["Request-Id"] = _request_id()
    for name in ("Idempotency-Key", "Stripe-Version"):
        if name in request.headers:
            response.headers[name] = request.headers[name]
    return response


@api.errorhandler(ApiError)
def show_error(error: ApiError) -> Response:
    """Answer with Stripe's error object."""
    return _respond(_answer(error.status, error.body()))


@api.errorhandler(HTTPException)
def show_http_error(error: HTTPException) -> Response:
    """Answer what Flask refuses (an unreadable request, say) in Stripe's format, too."""
    return show_error(ApiError(error.code or 500, error.description or error.name))


@api.post("/checkout/sessions")
def create_session() -> Response:
    """Create a session, with whatever fault waits for it."""
    return _execute_once(_create)


@api.post("/checkout/sessions/<session_id>/expire")
def expire_session(session_id: str) -> Response:
    """End an open session before its time."""

    def expire(form: Tree) -> Outcome:
        with_lines = _expands_lines(form)
        return Outcome(_shown(current_account().sessions.expire(session_id), with_lines))

    return _execute_once(expire)


@api.get("/checkout/sessions/<session_id>")
def retrieve_session(session_id: str) -> Response:
    """Show a session as it is now."""
    with_lines = _expands_lines(decode(request.args.items(multi=True)))
    return _respond(_shown(current_account().sessions.get(session_id), with_lines))


@api.get("/checkout/sessions/<session_id>/line_items")
def list_lines(session_id: str) -> Response:
    """Show a page of a session's lines: ``limit`` (1 to 100, default 10) of them after ``starting_after``."""
    session = current_account().sessions.get(session_id)
    limit = request.args.get("limit", "10")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 100):
        raise invalid("limit", "limit takes a whole number from 1 to 100.", "parameter_invalid_integer")
    ids = [line.id for line in session.lines]
    after = request.args.get("starting_after")
    if after is not None and after not in ids:
        raise invalid("starting_after", "starting_after takes the id of a line of this session.")
    first = 0 if after is None else ids.index(after) + 1
    last = first + int(limit)
    return _respond(_answer(200, line_list(session, session.lines[first:last], has_more=last < len(ids))))


@api.route("/<path:path>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def unknown(path: str) -> Response:
    """Say that the sandbox does not know this part of Stripe."""
    raise ApiError(404, f"The sandbox does not know {request.method} /v1/{path}.", code="url_invalid")


def _create(form: Tree) -> Outcome:
    account = current_account()
    with_lines = _expands_lines(form)
    new = read_new_session(form, account.clock())
    fault = account.faults.take()
    account.pause(fault.delay)
    if fault.error is not None:
        answer = _answer(fault.error, injected_error(fault.error).body())
    else:
        answer = _shown(account.sessions.create(new), with_lines)
    return Outcome(answer, fault.lost_answer)


def _expands_lines(form: Tree) -> bool:
    wanted = as_list(form["expand"], "expand") if "expand" in form else []
    if any(entry != "line_items" for entry in wanted):
        raise invalid("expand", "The sandbox expands line_items only.")
    return bool(wanted)


def _shown(session: Session, with_lines: bool) -> Answer:
    return _answer(200, session_object(session, request.host_url.rstrip("/"), with_lines=with_lines))


def _execute_once(operation: Callable[[Tree], Outcome]) -> Response:
    """Run a POST under Stripe's idempotency rules; without a key it runs each time."""
    account = current_account()
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return _deliver(_attempt(operation))
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        account.count("refused")
        message = f"Idempotency-Key takes 1 to {MAX_KEY_LENGTH} characters."
        raise ApiError(400, message, type="idempotency_error")
    match account.keys.begin(key, PostRequest(request.path, tuple(sorted(request.form.items(multi=True))))):
        case Replay(answer):
            account.count("replayed")
            return _respond(answer, replayed=True)
        case InUse():
            account.count("in_use")
            raise _in_use()
        case Mismatch(same_path):
            account.count("mismatched")
            raise _mismatch(same_path)
    outcome = None
    try:
        outcome = _attempt(operation)
    finally:
        # Settled before a byte is sent: an answer that gets lost on the way is there for the retry.
        account.keys.settle(key, outcome.answer if outcome else None)
    return _deliver(outcome)


def _attempt(operation: Callable[[Tree], Outcome]) -> Outcome:
    try:
        outcome = operation(decode(request.form.items(multi=True)))
    except ApiError as error:
        outcome = Outcome(_answer(error.status, error.body()))
    current_account().count("executed" if outcome.answer.kept else "refused")
    return outcome


def _deliver(outcome: Outcome) -> Response:
    if outcome.lost:
        current_account().count("lost")
        connection = request.environ.get("werkzeug.socket")
        if not isinstance(connection, socket.socket):
            raise RuntimeError("An answer can be lost on a real socket only: start the Sandbox.")
        connection.shutdown(socket.SHUT_RDWR)
    return _respond(outcome.answer)


def _respond(answer: Answer, *, replayed: bool = False) -> Response:
    response = Response(answer.body, answer.status, content_type="application/json")
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
        response.headers["Original-Request"] = answer.request_id
    return response


def _answer(status: int, body: dict[str, Any]) -> Answer:
    return Answer(status, json.dumps(body, indent=2), _request_id())


def _request_id() -> str:
    if "request_id" not in g:
        g.request_id = f"req_{current_account().token(7)}"
    return cast(str, g.request_id)


def _in_use() -> ApiError:
    message = "Another request with this Idempotency-Key is being executed. Wait a moment and send it again."
    return ApiError(409, message, code="idempotency_key_in_use")


def _mismatch(same_path: bool) -> ApiError:
    other = "other parameters" if same_path else "another endpoint"
    message = f"This Idempotency-Key was first used with {other}. Send the same request, or a new key."
    return ApiError(400, message, type="idempotency_error")
