"""A client that nobody here wrote: the official stripe library, whose automatic keys must be enough."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import stripe
from flask import Flask, abort, request

from flask_idempotent import current_idempotency, idempotent


class Unreliable:
    """WSGI middleware: lets the app do its work, then drops the connection as often as it is told."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self.drops = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = self._app(environ, start_response)
        if self.drops > 0:
            self.drops -= 1
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return body


@pytest.fixture
def shop(make_app: Callable[..., Flask]) -> Flask:
    """Answers like Stripe, guarded by us. It counts what it has done for each key, and fails as often as it is told."""
    app = make_app("stripe-like")
    app.effects = Counter()
    app.failures = 0
    app.wsgi_app = app.unreliable = Unreliable(app.wsgi_app)

    @app.post("/v1/checkout/sessions")
    @idempotent(required=True)
    def create_session() -> dict[str, Any]:
        if app.failures > 0:
            app.failures -= 1
            abort(500)
        app.effects[current_idempotency.key] += 1
        number = sum(app.effects.values())
        return {"id": f"cs_{number}", "object": "checkout.session", "mode": request.form["mode"]}

    return app


@pytest.fixture
def client(shop: Flask, serve: Any) -> stripe.StripeClient:
    return stripe.StripeClient(
        "sk_test_anything",
        base_addresses={"api": f"http://127.0.0.1:{serve(shop).port}"},
        max_network_retries=3,
        http_client=stripe.RequestsClient(timeout=5),
    )


@pytest.mark.parametrize(
    ("drops", "failures"),
    [(0, 0), (1, 0), (2, 0), (0, 1), (0, 2), (1, 1)],
    ids=["calm", "one lost answer", "two lost answers", "one 500", "two 500s", "a lost 500"],
)
def test_every_call_ends_with_one_execution(shop: Any, client: stripe.StripeClient, drops: int, failures: int) -> None:
    shop.unreliable.drops, shop.failures = drops, failures
    first = client.v1.checkout.sessions.create({"mode": "payment"})
    second = client.v1.checkout.sessions.create({"mode": "payment"})
    assert [first.id, second.id] == ["cs_1", "cs_2"]
    assert sorted(shop.effects.values()) == [1, 1]


def test_a_key_of_ones_own_is_one_session_however_often_it_is_sent(shop: Any, client: stripe.StripeClient) -> None:
    for _ in range(3):
        session = client.v1.checkout.sessions.create({"mode": "payment"}, {"idempotency_key": "order-17"})
        assert session.id == "cs_1"
    assert sum(shop.effects.values()) == 1
