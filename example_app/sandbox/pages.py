"""The hosted payment page: where a Checkout Session's ``url`` leads the buyer."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from .account import current_account
from .errors import ApiError
from .execution import drop_connection
from .sessions import COMPLETE, OPEN, Session

pages = Blueprint("pages", __name__)

ACTIONS = ("pay", "slow", "lost", "transfer", "arrive", "bounce", "decline", "cancel")
SLOW_SECONDS = 3.0
SESSION_ID_MARK = "{CHECKOUT_SESSION_ID}"  # replaced in the success URL, as Stripe does


@pages.errorhandler(ApiError)
def show_error(error: ApiError) -> tuple[str, int]:
    """Tell the buyer that there is no such payment."""
    return render_template("missing.html", message=error.message), error.status


@pages.get("/")
def index() -> str:
    """Say what this server is, for the curious who open its address."""
    return render_template("index.html", account=current_account())


@pages.get("/pay/<session_id>")
def show(session_id: str) -> str:
    """Show what is to be paid, or how the session ended."""
    session = current_account().sessions.get(session_id)
    return render_template(
        "pay.html", session=session, success_url=_success_url(session), declined="declined" in request.args
    )


@pages.post("/pay/<session_id>")
def act(session_id: str) -> Response:
    """Do what the button says, and go where Stripe would send the buyer; a second click changes nothing."""
    sessions = current_account().sessions
    session = sessions.get(session_id)
    action = request.form.get("action")
    if action not in ACTIONS:
        raise BadRequest(f"action takes one of: {', '.join(ACTIONS)}.")
    if action == "slow":
        current_account().pause(SLOW_SECONDS)
    if action in ("pay", "slow", "lost"):
        session = sessions.pay(session_id)
    if action == "transfer":
        session = sessions.transfer(session_id)
    if action in ("arrive", "bounce"):
        session = sessions.settle(session_id, arrived=action == "arrive")
    if action == "lost" and session.paid:
        drop_connection()
    return redirect(_where_to(session, action), 303)


def _where_to(session: Session, action: str) -> str:
    if session.status == COMPLETE:
        return _success_url(session)
    if action == "cancel" and session.status == OPEN and session.new.cancel_url:
        return session.new.cancel_url
    declined = 1 if action == "decline" and session.status == OPEN else None
    return url_for(".show", session_id=session.id, declined=declined)


def _success_url(session: Session) -> str:
    return session.new.success_url.replace(SESSION_ID_MARK, session.id)
