"""Checkout Sessions over the API."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from .account import current_account
from .execution import Outcome, answer, base_url, deliver, disturbed, execute_once, expansion, list_object, page, show
from .forms import Tree, decode
from .objects import EXPANDABLE, line_list, session_object
from .params import read_new_session
from .sessions import Session

session_api = Blueprint("sessions", __name__, url_prefix="/checkout/sessions")


@session_api.post("")
def create_session() -> Response:
    """Create a session, with whatever fault waits for it."""

    def create(form: Tree) -> Outcome:
        account, expand = current_account(), expansion(form, EXPANDABLE)
        new = read_new_session(form, account.clock())
        return disturbed("sessions", lambda: _shown(account.sessions.create(new), expand))

    return execute_once(create)


@session_api.post("/<session_id>/expire")
def expire_session(session_id: str) -> Response:
    """End an open session before its time."""

    def expire(form: Tree) -> Outcome:
        expand = expansion(form, EXPANDABLE)
        return Outcome(answer(200, _shown(current_account().sessions.expire(session_id), expand)))

    return execute_once(expire)


@session_api.get("/<session_id>")
def retrieve_session(session_id: str) -> Response:
    """Show a session as it is now, with whatever fault waits for it."""
    expand = expansion(decode(request.args.items(multi=True)), EXPANDABLE)
    return deliver(disturbed("retrievals", lambda: _shown(current_account().sessions.get(session_id), expand)))


@session_api.get("")
def list_sessions() -> Response:
    """Show a page of the sessions, the newest first; ``payment_intent`` asks for the one that was paid by it."""
    intent = request.args.get("payment_intent")
    sessions = current_account().sessions.all()
    found = [session for session in reversed(sessions) if intent in (None, session.payment_intent)]
    shown, more = page(found, lambda session: session.id)
    return show(list_object([_shown(session, frozenset()) for session in shown], has_more=more))


@session_api.get("/<session_id>/line_items")
def list_lines(session_id: str) -> Response:
    """Show a page of a session's lines."""
    session = current_account().sessions.get(session_id)
    lines, more = page(session.lines, lambda line: line.id)
    return show(line_list(session, lines, has_more=more))


def _shown(session: Session, expand: frozenset[str]) -> dict[str, Any]:
    return session_object(session, base_url(), expand)
