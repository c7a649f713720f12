"""How a call of the API is executed and answered: once per idempotency key, with whatever fault waits for it."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from flask import Response, g, request

from .account import current_account
from .errors import ApiError, invalid
from .faults import injected_error
from .forms import Tree, as_list, decode
from .idempotency import MAX_KEY_LENGTH, Answer, InUse, Mismatch, PostRequest, Replay

Shown = TypeVar("Shown")


@dataclass(frozen=True)
class Outcome:
    """What an execution led to, and whether the caller shall never hear of it."""

    answer: Answer
    lost: bool = False


def disturbed(at: str, operation: Callable[[], dict[str, Any]]) -> Outcome:
    """Execute, with the next fault that waits for this place.

    :param at: one of :data:`.faults.PLACES`.
    :param operation: returns the object to answer.
    """
    account = current_account()
    fault = account.faults.take(at)
    account.pause(fault.delay)
    if fault.error is not None:
        return Outcome(answer(fault.error, injected_error(fault.error).body()), fault.lost_answer)
    return Outcome(answer(200, operation()), fault.lost_answer)


def execute_once(operation: Callable[[Tree], Outcome]) -> Response:
    """Run a POST under Stripe's idempotency rules; without a key it runs each time."""
    account = current_account()
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return deliver(_attempt(operation))
    if not 1 <= len(key) <= MAX_KEY_LENGTH:
        account.count("refused")
        message = f"Idempotency-Key takes 1 to {MAX_KEY_LENGTH} characters."
        raise ApiError(400, message, type="idempotency_error")
    match account.keys.begin(key, PostRequest(request.path, tuple(sorted(request.form.items(multi=True))))):
        case Replay(kept):
            account.count("replayed")
            return respond(kept, replayed=True)
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
    return deliver(outcome)


def _attempt(operation: Callable[[Tree], Outcome]) -> Outcome:
    try:
        outcome = operation(decode(request.form.items(multi=True)))
    except ApiError as error:
        outcome = Outcome(answer(error.status, error.body()))
    current_account().count("executed" if outcome.answer.kept else "refused")
    return outcome


def deliver(outcome: Outcome) -> Response:
    """Send an answer, or drop the connection where it shall be lost."""
    if outcome.lost:
        current_account().count("lost")
        drop_connection()
    return respond(outcome.answer)


def drop_connection() -> None:
    """Let the caller hear nothing more; raises RuntimeError where there is no socket."""
    connection = request.environ.get("werkzeug.socket")
    if not isinstance(connection, socket.socket):
        raise RuntimeError("An answer can be lost on a real socket only: start the Sandbox.")
    connection.shutdown(socket.SHUT_RDWR)


def respond(given: Answer, *, replayed: bool = False) -> Response:
    """Return an answer as a response."""
    response = Response(given.body, given.status, content_type="application/json")
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
        response.headers["Original-Request"] = given.request_id
    return response


def show(body: dict[str, Any]) -> Response:
    """Return an object as the response to a GET."""
    return respond(answer(200, body))


def answer(status: int, body: dict[str, Any]) -> Answer:
    """Return an object, or an error's body, as an answer that can be kept."""
    return Answer(status, json.dumps(body, indent=2), request_id())


def request_id() -> str:
    """Return the id of the current request."""
    if "request_id" not in g:
        g.request_id = f"req_{current_account().token(7)}"
    return cast(str, g.request_id)


def base_url() -> str:
    """Return where the sandbox is reached, as the caller knows it."""
    return request.host_url.rstrip("/")


def expansion(form: Tree, known: frozenset[str]) -> frozenset[str]:
    """Return the fields that ``expand`` asks for, or raise a 400 ApiError."""
    wanted = as_list(form["expand"], "expand") if "expand" in form else []
    if not all(isinstance(entry, str) and entry in known for entry in wanted):
        raise invalid("expand", f"The sandbox expands {', '.join(sorted(known)) or 'nothing'} here.")
    return frozenset(str(entry) for entry in wanted)


def page(items: Sequence[Shown], identify: Callable[[Shown], str]) -> tuple[Sequence[Shown], bool]:
    """Return the part of a list that the query asks for, and whether there is more after it.

    ``limit`` (1 to 100, default 10) of them after ``starting_after``.

    :raises ApiError: 400 when either cannot be used.
    """
    limit = request.args.get("limit", "10")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 100):
        raise invalid("limit", "limit takes a whole number from 1 to 100.", "parameter_invalid_integer")
    ids = [identify(item) for item in items]
    after = request.args.get("starting_after")
    if after is not None and after not in ids:
        raise invalid("starting_after", "starting_after takes an id of this list.")
    first = 0 if after is None else ids.index(after) + 1
    last = first + int(limit)
    return items[first:last], last < len(ids)


def list_object(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """Return one page as a ``list`` object."""
    return {"object": "list", "data": list(data), "has_more": has_more, "url": request.path}


def _in_use() -> ApiError:
    message = "Another request with this Idempotency-Key is being executed. Wait a moment and send it again."
    return ApiError(409, message, code="idempotency_key_in_use")


def _mismatch(same_path: bool) -> ApiError:
    other = "other parameters" if same_path else "another endpoint"
    message = f"This Idempotency-Key was first used with {other}. Send the same request, or a new key."
    return ApiError(400, message, type="idempotency_error")
