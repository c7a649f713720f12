"""Stripe's webhook: the signature first, then each event once, recorded after success only."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, current_app, request

from .checkout import CheckoutError, StripeMisconfigured, setting
from .runner import Runner
from .state import AppState, app_state

if TYPE_CHECKING:
    import stripe

log = logging.getLogger("flask_idempotent")

TOLERANCE: Final = 300  # seconds that a signature may be old; Stripe's own default
RETENTION: Final = 3 * 86400.0  # seconds; Stripe delivers an event again for up to three days

Fulfil = Callable[["stripe.Event"], Any]


class WebhookRefused(CheckoutError):
    """The request is not signed with this endpoint's secret, or the signature is old: anybody may have sent it."""

    code = 400
    problem_code = "webhook-refused"
    title = "The webhook's signature does not hold"
    detail = "Only Stripe can send events here. Check that STRIPE_WEBHOOK_SECRET is this endpoint's, and the clock."


def event_runner(**options: Any) -> Runner:
    """Runs the function for each event once, in the store of the current app.

    The same event may come in other words (``pending_webhooks`` counts down), so nothing but its id counts.

    :param options: as for :class:`~flask_idempotent.runner.Runner`; ``ttl`` is three days by default.
    """
    return Runner(_current, **{"scope": "stripe webhook", "ttl": RETENTION, **options, "fingerprint": None})


def receive(client: Callable[[], stripe.StripeClient], fulfil: Fulfil, runner: Runner) -> None:
    """Handle the current request as one delivery of an event.

    The event is recorded when ``fulfil`` has returned; when it raises, or the process dies, Stripe's next delivery
    runs it again. While another delivery of the event runs, the guard's 409 makes Stripe come back.

    :param client: returns the Stripe client.
    :param fulfil: the host's function of the event; what it returns is not kept.
    :raises WebhookRefused: the signature does not hold; neither the store nor ``fulfil`` was asked.
    :raises StripeMisconfigured: there is no ``STRIPE_WEBHOOK_SECRET``, or no API key.
    :raises IdempotencyError: the guard's own refusals.
    """
    event = _verified(client)
    runner.run(f"{request.endpoint} {event.id}", _fulfil, fulfil, event)
    log.debug("A Stripe event was handled", extra={"stripe_event": event.id, "stripe_event_type": event.type})


def _fulfil(fulfil: Fulfil, event: stripe.Event) -> None:
    fulfil(event)


def _verified(client: Callable[[], stripe.StripeClient]) -> stripe.Event:
    """The event in the current request, its signature checked over the bytes as they came."""
    secret = setting(current_app, "STRIPE_WEBHOOK_SECRET")
    if not secret:
        log.error("STRIPE_WEBHOOK_SECRET is set neither in the app's config nor in the environment: no event is taken")
        raise StripeMisconfigured
    import stripe

    signature = request.headers.get("Stripe-Signature")
    try:
        return client().construct_event(request.get_data(), signature, secret, TOLERANCE)
    except (stripe.SignatureVerificationError, ValueError, TypeError) as error:  # TypeError: not ASCII
        log.warning("A webhook was refused: %s", type(error).__name__)
        raise WebhookRefused from error


def _current() -> tuple[Flask, AppState]:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app, app_state(app)
