"""The blueprint: checkout, webhook and health, ready to register."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, current_app, jsonify, request

from . import health
from .checkout import CheckoutRefused, StripeBusy, create_session, stripe_client
from .decorator import idempotent
from .state import app_state
from .web import Fate, fate
from .webhook import Fulfil, event_runner, receive

if TYPE_CHECKING:
    import stripe

SessionParams = Callable[[Any], Mapping[str, Any]]
OnSession = Callable[["stripe.checkout.Session"], None]
Client = Callable[[], "stripe.StripeClient"]


def create_blueprint(
    session_params: SessionParams | None = None,
    *,
    on_session: OnSession | None = None,
    fulfil: Fulfil | None = None,
    webhook_options: Mapping[str, Any] | None = None,
    client: Client = stripe_client,
    name: str = "idempotency",
    url_prefix: str | None = None,
    **options: Any,
) -> Blueprint:
    """A blueprint with ``GET /health``, ``POST /checkout`` when the host says what is sold, and ``POST /webhook`` when
    it says what a payment leads to.

    ``POST /checkout`` takes JSON, needs an idempotency key, creates a Stripe Checkout Session under a key derived from
    it, and answers ``{"id", "url"}``. ``POST /webhook`` takes Stripe's events, signed with ``STRIPE_WEBHOOK_SECRET``
    (from the app's config, else the environment), and answers 200 once each is dealt with. ``GET /health`` answers
    what :meth:`Idempotency.health` says, with 503 when unhealthy.

    :param session_params: turns the request's JSON, whatever its type, into the parameters of a Checkout Session.
        Prices come from the server: take ids and quantities only. Refuse a request by raising
        :class:`CheckoutRefused`. It runs inside the guarded request and may use ``current_idempotency.derive`` to name
        an order that is the same on every retry.
    :param on_session: called with the session before the answer, to note its id. May run again on a retry.
    :param fulfil: called with each event, whatever its type, once: an event whose call has returned is answered
        without another. What it raises lets Stripe deliver the event again. Two events can tell of one payment and come
        in any order, so ask Stripe how the payment stands, and let one conditional UPDATE decide who fulfils.
        ``current_idempotency.derive`` names effects of it.
    :param webhook_options: for the events, as for :meth:`Idempotency.runner`; ``ttl`` is three days by default.
    :param client: returns the Stripe client; by default :func:`stripe_client`.
    :param name: of the blueprint.
    :param url_prefix: as for any blueprint.
    :param options: of ``@idempotent`` for the checkout, such as ``ttl``.
    :return: the blueprint, for ``app.register_blueprint``.
    """
    blueprint = Blueprint(name, __name__, url_prefix=url_prefix)
    blueprint.get("/health")(_health)
    if session_params is not None:
        _add_checkout(blueprint, client, session_params, on_session, options)
    if fulfil is not None:
        _add_webhook(blueprint, client, fulfil, webhook_options or {})
    return blueprint


def _add_checkout(
    blueprint: Blueprint,
    client: Client,
    session_params: SessionParams,
    on_session: OnSession | None,
    options: Mapping[str, Any],
) -> None:
    @blueprint.post("/checkout")
    @idempotent(**{"required": True, "save": _checkout_fate, **options})
    def checkout() -> Response:
        session = create_session(client(), session_params(_json()))
        if on_session is not None:
            on_session(session)
        return jsonify(id=session.id, url=session.url)


def _add_webhook(blueprint: Blueprint, client: Client, fulfil: Fulfil, options: Mapping[str, Any]) -> None:
    runner = event_runner(**options)

    @blueprint.post("/webhook")
    def webhook() -> Response:
        receive(client, fulfil, runner)
        return jsonify(received=True)


def _health() -> tuple[Response, int]:
    report = health.check(app_state(current_app._get_current_object()))  # type: ignore[attr-defined]
    response = jsonify(report)
    response.headers["Cache-Control"] = "no-store"
    return response, 503 if report["status"] == health.UNHEALTHY else 200


def _json() -> Any:
    if not request.is_json:
        raise CheckoutRefused("Send the request as JSON, with Content-Type: application/json.")
    try:
        payload = request.get_json(silent=True)
    except RecursionError:
        payload = None
    if payload is None:
        raise CheckoutRefused("The body is not a JSON document.")
    return payload


def _checkout_fate(response: Response) -> Fate:
    """While Stripe is still working on the request something may have happened, so the key stays with this request."""
    return Fate.FAIL if response.status_code == StripeBusy.code else fate(response, None)
