"""The hosted payment page: where a Checkout Session's ``url`` leads the buyer."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Response

from .account import current_account
from .errors import ApiError
from .sessions import COMPLETE, OPEN, Session

pages = Blueprint("pages", __name__)

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
    """Pay, decline or cancel, and go where Stripe would send the buyer; a second click changes nothing."""
    sessions = current_account().sessions
    session = sessions.get(session_id)
    match request.form.get("action"):
        case "pay":
            session = sessions.pay(session_id)
        case "decline" if session.status == OPEN:
            return redirect(url_for(".show", session_id=session_id, declined=1), 303)
        case "cancel" if session.status == OPEN and session.new.cancel_url:
            return redirect(session.new.cancel_url, 303)
        case "decline" | "cancel":
            pass
        case _:
            raise BadRequest("action takes pay, decline or cancel.")
    if session.status == COMPLETE:
        return redirect(_success_url(session), 303)
    return redirect(url_for(".show", session_id=session_id), 303)


def _success_url(session: Session) -> str:
    return session.new.success_url.replace(SESSION_ID_MARK, session.id)
