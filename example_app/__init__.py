"""A small shop that sells each thing once: the example for flask_idempotent.

``python -m example_app`` runs it, with an offline stand-in for Stripe unless ``STRIPE_API_KEY`` is set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Response, current_app
from werkzeug.exceptions import InternalServerError, NotFound

from flask_idempotent import Idempotency, create_blueprint

from .buying import buying
from .openapi import openapi
from .orders import create_tables, db
from .pages import shop, show_not_found, show_server_error
from .payments import fulfil
from .purchase import remember_session, session_params
from .refunds import refunds

__all__ = ["create_app", "idempotency"]

DEFAULT_DATABASE = "sqlite:///shop.db"  # in the app's instance folder
STRIPE_CHECKOUT = "https://checkout.stripe.com"  # the origin of Stripe's payment pages

SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self' {payment}; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    ("Referrer-Policy", "same-origin"),  # an order's address is all that it takes to see the order
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

idempotency = Idempotency()


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Build the shop. It starts no thread and calls nobody; it creates the tables that are missing.

    :param config: settings that win over the environment: ``SQLALCHEMY_DATABASE_URI`` (else ``DATABASE_URL``,
        else a SQLite file in the instance folder), ``STRIPE_API_KEY``, ``STRIPE_WEBHOOK_SECRET`` and
        ``STRIPE_API_BASE``, ``IDEMPOTENCY_*``, and any of Flask's own.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ.get("DATABASE_URL") or DEFAULT_DATABASE,
        STRIPE_API_KEY=os.environ.get("STRIPE_API_KEY"),
        STRIPE_WEBHOOK_SECRET=os.environ.get("STRIPE_WEBHOOK_SECRET"),
    )
    app.config.from_mapping(config or {})
    db.init_app(app)
    create_tables(app)
    idempotency.init_app(app)
    app.register_blueprint(shop)
    app.register_blueprint(buying)
    app.register_blueprint(refunds)
    app.register_blueprint(openapi)
    app.register_blueprint(create_blueprint(session_params, on_session=remember_session, fulfil=fulfil))
    app.register_error_handler(NotFound, show_not_found)
    app.register_error_handler(InternalServerError, show_server_error)
    app.after_request(_add_security_headers)
    return app


def _add_security_headers(response: Response) -> Response:
    for name, value in SECURITY_HEADERS:
        response.headers[name] = value.format(payment=_payment_origin())
    if response.mimetype in ("text/html", "application/json"):
        response.headers.setdefault("Cache-Control", "no-store")
    return response


def _payment_origin() -> str:
    """Where the form for buying leads by its redirect: browsers hold that to form-action, too."""
    base = current_app.config.get("STRIPE_API_BASE") or os.environ.get("STRIPE_API_BASE")
    return urlunsplit((*urlsplit(base)[:2], "", "", "")) if base else STRIPE_CHECKOUT
