"""The sandbox as a Flask app: the API, its controls and the hosted payment page."""

from __future__ import annotations

from flask import Flask, Response

from ..serving import answer_to_loopback_names
from .account import EXTENSION, Account
from .api import api
from .control import control
from .pages import pages

# Browsers hold the redirects after a form to form-action, too, and those lead back to the shop's own origin.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self' http: https:; "
    "base-uri 'none'; frame-ancestors 'none'"
)


def create_app(account: Account) -> Flask:
    """Build the app over an account's state; it answers requests to a loopback name only."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 1 << 20
    app.extensions[EXTENSION] = account
    answer_to_loopback_names(app)
    app.register_blueprint(api)
    app.register_blueprint(control)
    app.register_blueprint(pages)
    app.add_template_filter(format_amount, "amount")
    app.after_request(_add_security_headers)
    return app


def format_amount(amount: int, currency: str) -> str:
    """Write an amount in minor units for the eye: ``format_amount(1850, "eur")`` is ``18.50 EUR``."""
    return f"{amount // 100:,}.{amount % 100:02} {currency.upper()}"


def _add_security_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-store"
    return response
