"""A sandbox on its socket, the real client for it, and a clock that the tests move."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import stripe
from flask import Flask
from flask.testing import FlaskClient

from example_app import create_app
from example_app.orders import db
from example_app.sandbox import Sandbox
from example_app.serving import Server

PARAMS: dict[str, Any] = {
    "mode": "payment",
    "line_items": [
        {
            "price_data": {"currency": "eur", "unit_amount": 1800, "product_data": {"name": "Mug"}},
            "quantity": 2,
        }
    ],
    "success_url": "http://127.0.0.1:5000/orders/1?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://127.0.0.1:5000/products/mug",
}


class Clock:
    """Seconds since the epoch, as far as the test says."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sandbox(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr("example_app.serving.POLL_SECONDS", 0.005)  # hundreds of servers are stopped here
    with Sandbox(clock=clock, redelivery=0.05) as sandbox:
        yield sandbox


@pytest.fixture
def connect() -> Iterator[Callable[..., stripe.StripeClient]]:
    """Build real clients for a sandbox, and close their connections in the end."""
    transports: list[stripe.RequestsClient] = []

    def connect(url: str, key: str = "sk_test_sandbox", retries: int = 0) -> stripe.StripeClient:
        transports.append(stripe.RequestsClient(timeout=(3, 10)))
        return stripe.StripeClient(
            key, base_addresses={"api": url}, http_client=transports[-1], max_network_retries=retries
        )

    yield connect
    for transport in transports:
        transport.close()


@pytest.fixture
def client(sandbox: Sandbox, connect: Callable[..., stripe.StripeClient]) -> stripe.StripeClient:
    return connect(sandbox.url)


@pytest.fixture
def params() -> dict[str, Any]:
    """Parameters of a session that is accepted, for the test to change."""
    return {**PARAMS, "line_items": [{**line} for line in PARAMS["line_items"]]}


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Poll until a condition holds; fail the test when it does not within 20 seconds."""

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.005)

    return wait_until


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away whatever the machine says about databases, Redis and Stripe."""
    for name in (
        "DATABASE_URL", "PORT", "REDIS_URL", "STRIPE_API_BASE", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET",
        "UPSTASH_REDIS_REST_URL",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def open_shop(tmp_path: Path, sandbox: Sandbox, bare_environment: None) -> Iterator[Callable[..., Flask]]:
    """Build shops over one database file and one sandbox; called twice, it is the shop after a restart."""
    shops: list[Flask] = []

    def open_shop(**config: Any) -> Flask:
        settings = {
            "TESTING": True,
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'shop.db'}",
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": sandbox.url,
        }
        shops.append(create_app({**settings, **config}))
        return shops[-1]

    yield open_shop
    for shop in shops:
        with shop.app_context():
            db.session.remove()
            db.engine.dispose()


@pytest.fixture
def serve_shop(open_shop: Callable[..., Flask], sandbox: Sandbox) -> Iterator[Callable[..., Flask]]:
    """Build shops as ``open_shop`` does, and serve each on a socket, where the sandbox delivers its events."""
    servers: list[Server] = []

    def serve_shop(**config: Any) -> Flask:
        servers.append(Server())
        secret = sandbox.add_webhook(f"{servers[-1].url}/webhook")
        shop = open_shop(STRIPE_WEBHOOK_SECRET=secret, **config)
        servers[-1].start(shop)
        return shop

    yield serve_shop
    for server in servers:
        server.stop()


@pytest.fixture
def shop(serve_shop: Callable[..., Flask]) -> Flask:
    return serve_shop()


@pytest.fixture
def browser(shop: Flask) -> FlaskClient:
    return shop.test_client()
