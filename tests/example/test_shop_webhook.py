"""The order ships once, whatever happens to the events: over sockets, with the real client and signed deliveries."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from sqlalchemy import select

from example_app import orders
from example_app.orders import Order, OrderLine, Payment, Shipment, Status, db
from example_app.sandbox import Fault
from example_app.serving import Server

from ..signing import delivery, event
from .shop_tables import CART, buy, change, order_of, rows


@pytest.fixture
def webhook(open_shop):
    """A shop that no event reaches but those that the test posts to it, and how to post them."""
    with Server() as server:
        shop = open_shop(STRIPE_WEBHOOK_SECRET="whsec_test")
        server.start(shop)

        def post(sent, **how):
            return requests.post(f"{server.url}/webhook", **delivery(sent, **how), timeout=30)

        shop.post_event = post
        yield shop


@pytest.fixture
def paid(webhook, sandbox):
    """A session that is paid at Stripe, of an order that has not heard of it."""
    session_id = buy(webhook.test_client())
    sandbox.pay(session_id)
    return session_id


def events_of(sandbox, kind):
    return [known for known in sandbox.events if known["type"] == kind]


def completed(sandbox):
    return events_of(sandbox, "checkout.session.completed")[0]


# --- One way or another, once ---------------------------------------------------------------------------------------


def test_a_payment_ships_the_order_and_notes_what_it_was_paid_by(webhook, sandbox, paid):
    assert webhook.post_event(completed(sandbox)).status_code == 200
    order = order_of(webhook, paid)
    assert (order.state, order.shipment is not None) == (Status.PAID, True)
    assert order.payment.payment_intent == sandbox.sessions[0]["payment_intent"]


def test_eight_deliveries_at_once_ship_once(webhook, sandbox, paid):
    start = threading.Barrier(8, timeout=20)

    def deliver(_):
        start.wait()
        return webhook.post_event(completed(sandbox)).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(deliver, range(8)))
    assert 200 in answers
    assert set(answers) <= {200, 409}
    assert [webhook.post_event(completed(sandbox)).status_code for _ in range(3)] == 3 * [200]
    assert (order_of(webhook, paid).state, rows(webhook, Shipment)) == (Status.PAID, 1)


def test_eight_workers_that_share_nothing_but_the_database_ship_once(open_shop, webhook, sandbox, paid):
    """Each has a memory store of its own, so each handles the event: the order's UPDATE decides."""
    start = threading.Barrier(8, timeout=20)
    workers = [open_shop(STRIPE_WEBHOOK_SECRET="whsec_test").test_client() for _ in range(8)]

    def deliver(worker):
        start.wait()
        return worker.post("/webhook", **delivery(completed(sandbox))).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(deliver, workers)) == 8 * [200]
    assert (order_of(webhook, paid).state, rows(webhook, Shipment), rows(webhook, Payment)) == (Status.PAID, 1, 1)


def test_two_events_of_one_session_at_once_ship_once(webhook, sandbox):
    session_id = buy(webhook.test_client())
    sandbox.transfer(session_id)
    sandbox.settle(session_id, arrived=True)
    both = [completed(sandbox), *events_of(sandbox, "checkout.session.async_payment_succeeded")]
    assert len(both) == 2
    start = threading.Barrier(2, timeout=20)

    def deliver(sent):
        start.wait()
        return webhook.post_event(sent).status_code

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(deliver, both)) == [200, 200]
    assert (order_of(webhook, session_id).state, rows(webhook, Shipment)) == (Status.PAID, 1)


@pytest.mark.parametrize("seed", range(6))
def test_events_in_any_order_and_twice_lead_to_the_same_end(webhook, sandbox, client, seed):
    session_id = buy(webhook.test_client())
    sandbox.transfer(session_id)
    sandbox.settle(session_id, arrived=True)
    intent = client.v1.checkout.sessions.retrieve(session_id).payment_intent
    client.v1.refunds.create({"payment_intent": intent})
    sent = [known for known in sandbox.events for _ in range(2)]
    random.Random(seed).shuffle(sent)
    assert {webhook.post_event(one).status_code for one in sent} == {200}
    assert order_of(webhook, session_id).state is Status.REFUNDED
    assert rows(webhook, Shipment) == 0, "it was refunded before we heard of it"


def test_a_refund_that_is_heard_of_before_its_payment_finds_the_order(webhook, sandbox, client, paid):
    client.v1.refunds.create({"payment_intent": client.v1.checkout.sessions.retrieve(paid).payment_intent})
    for kind in ("charge.refunded", "checkout.session.completed"):
        assert webhook.post_event(events_of(sandbox, kind)[0]).status_code == 200
    assert (order_of(webhook, paid).state, rows(webhook, Shipment)) == (Status.REFUNDED, 0)


def test_a_retry_after_the_retention_ships_nothing_more(open_shop, webhook, sandbox, paid):
    """Another shop over the same database has forgotten every event: so will a store after the TTL."""
    webhook.post_event(completed(sandbox))
    later = open_shop(STRIPE_WEBHOOK_SECRET="whsec_test").test_client()
    assert later.post("/webhook", **delivery(completed(sandbox))).status_code == 200
    assert (order_of(webhook, paid).state, rows(webhook, Shipment)) == (Status.PAID, 1)


def test_a_payment_that_takes_days_ships_when_it_arrives(browser, shop, sandbox, wait_until):
    session_id = buy(browser)
    sandbox.transfer(session_id)
    wait_until(lambda: order_of(shop, session_id).state is Status.PROCESSING)
    assert rows(shop, Shipment) == 0
    sandbox.settle(session_id, arrived=True)
    wait_until(lambda: order_of(shop, session_id).state is Status.PAID)
    assert rows(shop, Shipment) == 1


def test_a_payment_that_does_not_arrive_fails_the_order(browser, shop, sandbox, wait_until):
    session_id = buy(browser)
    sandbox.transfer(session_id)
    sandbox.settle(session_id, arrived=False)
    wait_until(lambda: order_of(shop, session_id).state is Status.FAILED)
    assert rows(shop, Shipment) == 0


# --- What is not to ship --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "values"),
    [(OrderLine, {"unit_amount": 1}), (OrderLine, {"quantity": 3}), (Order, {"currency": "usd"})],
)
def test_another_amount_or_currency_is_held_and_not_shipped(webhook, sandbox, paid, caplog, table, values):
    change(webhook, table, **values)
    assert webhook.post_event(completed(sandbox)).status_code == 200
    order = order_of(webhook, paid)
    assert (order.state, rows(webhook, Shipment)) == (Status.HELD, 0)
    assert order.payment is not None
    assert "another amount or currency" in caplog.text


def test_what_an_event_says_is_not_believed(webhook, sandbox):
    """Signed or not, it is a hint: the session is fetched."""
    session_id = buy(webhook.test_client())
    sent = event("checkout.session.completed", id=session_id, status="complete", payment_status="paid")
    assert webhook.post_event(sent).status_code == 200
    assert (order_of(webhook, session_id).state, rows(webhook, Shipment)) == (Status.OPEN, 0)


def test_a_forged_event_touches_nothing(webhook, sandbox, paid):
    assert webhook.post_event(completed(sandbox), secret="whsec_other").status_code == 400
    assert order_of(webhook, paid).state is Status.OPEN


def test_events_that_mean_nothing_here_are_acknowledged(webhook, sandbox, client, params):
    foreign = client.v1.checkout.sessions.create(params)  # of another shop on the same account
    sandbox.pay(foreign.id)
    intent = client.v1.checkout.sessions.retrieve(foreign.id).payment_intent
    client.v1.refunds.create({"payment_intent": intent})
    everything = [*sandbox.events, event("customer.created", "evt_c"), event("no.such.thing", "evt_n")]
    for number, sent in enumerate(everything):
        assert webhook.post_event({**sent, "id": f"evt_{number}"}).status_code == 200, sent["type"]
    assert rows(webhook, Order) == 0


def test_an_event_of_a_session_that_nobody_has_ever_seen_is_a_failure_to_be_looked_at(webhook, caplog):
    assert webhook.post_event(event(id="cs_test_nobody")).status_code == 500
    assert "No such session" in caplog.text


def test_a_late_word_about_an_earlier_session_does_not_expire_the_order(webhook, sandbox, client):
    session_id = buy(webhook.test_client())
    with webhook.app_context():
        order = orders.find(order_of(webhook, session_id).id)
        second = client.v1.checkout.sessions.create(
            {"mode": "payment", "client_reference_id": order.id, "success_url": order.success_url,
             "line_items": [{"quantity": 2, "price_data": {"currency": "eur", "unit_amount": 1800,
                                                           "product_data": {"name": "Mug"}}}]}
        )  # fmt: skip
        orders.attach_session(order.id, second.id, second.url)
    sandbox.expire(session_id)
    assert webhook.post_event(events_of(sandbox, "checkout.session.expired")[0]).status_code == 200
    assert order_of(webhook, second.id).state is Status.OPEN


def test_a_payment_of_an_earlier_session_counts_and_a_second_one_is_reported(webhook, sandbox, client, caplog):
    first = buy(webhook.test_client())
    order = order_of(webhook, first)
    copy = {"mode": "payment", "client_reference_id": order.id, "success_url": order.success_url,
            "line_items": [{"quantity": 2, "price_data": {"currency": "eur", "unit_amount": 1800,
                                                          "product_data": {"name": "Mug"}}}]}  # fmt: skip
    second = client.v1.checkout.sessions.create(copy).id
    for session_id in (second, first):
        sandbox.pay(session_id)
    told = events_of(sandbox, "checkout.session.completed")
    assert webhook.post_event(told[0]).status_code == 200
    assert (order_of(webhook, second).state, rows(webhook, Shipment)) == (Status.PAID, 1)
    assert "second session" not in caplog.text
    assert webhook.post_event(told[1]).status_code == 200
    assert rows(webhook, Shipment) == 1
    assert "paid by a second session" in caplog.text


# --- Failures on the way --------------------------------------------------------------------------------------------


def test_while_stripe_cannot_be_asked_the_event_comes_again(browser, shop, sandbox, wait_until):
    session_id = buy(browser)
    sandbox.inject(Fault(error=500, at="retrievals"), times=6)  # the client tries three times
    sandbox.pay(session_id)
    wait_until(lambda: order_of(shop, session_id).state is Status.PAID)
    told = [attempt.status for attempt in sandbox.attempts if attempt.kind == "checkout.session.completed"]
    assert told[:1] == [503]
    wait_until(lambda: sum(known["pending_webhooks"] for known in sandbox.events) == 0)
    assert rows(shop, Shipment) == 1


def test_a_database_that_fails_lets_the_event_come_again(webhook, sandbox, paid):
    with webhook.app_context():
        Shipment.__table__.drop(db.engine)
        webhook.testing = False
        webhook.config["PROPAGATE_EXCEPTIONS"] = False
        assert webhook.post_event(completed(sandbox)).status_code == 500
        assert order_of_without_shipment(paid) == "open", "nothing of the transaction stays"
        Shipment.__table__.create(db.engine)
    assert webhook.post_event(completed(sandbox)).status_code == 200
    assert (order_of(webhook, paid).state, rows(webhook, Shipment)) == (Status.PAID, 1)


def order_of_without_shipment(session_id):
    with db.session.session_factory() as session:
        return session.scalar(select(Order.status).where(Order.session_id == session_id))


class Shop:
    """The shop as a process on one port, which can be killed and started again."""

    def __init__(self, directory: Path, config: dict) -> None:
        self.directory = directory
        with Server() as free:
            self.port = free.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = config
        self._process = None

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.example.shop_worker", json.dumps(self.config), str(self.directory),
                   str(self.port)]  # fmt: skip
        self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline().strip() == str(self.port)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def hold(self, moment: str) -> None:
        (self.directory / f"hold-{moment}").touch()

    def release(self) -> None:
        for held in self.directory.glob("hold-*"):
            held.unlink()

    def noted(self, moment: str) -> int:
        path = self.directory / moment
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
def process(request, tmp_path, sandbox, open_shop, bare_environment):
    """The shop in a process, and this test's own view of its database."""
    store = {}
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        store = {"IDEMPOTENCY_CACHE_REDIS_URL": server.url, "IDEMPOTENCY_STORE_TIMEOUT": 3,
                 "IDEMPOTENCY_LEASE": 2, "IDEMPOTENCY_KEY_PREFIX": f"{uuid4()}:",
                 "IDEMPOTENCY_SHARED_PATH": str(tmp_path / "host" / "records.sqlite")}  # fmt: skip
    directory = tmp_path / "process"
    directory.mkdir()
    shop = Shop(directory, {})
    shop.config = {
        "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'shop.db'}",
        "STRIPE_API_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": sandbox.url,
        "STRIPE_WEBHOOK_SECRET": sandbox.add_webhook(f"{shop.url}/webhook"),
        **store,
    }
    shop.view = open_shop()
    shop.start()
    yield shop
    shop.release()
    shop.kill()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_server_that_is_killed_in_the_middle_of_an_event_ships_once(process, sandbox, wait_until, moment):
    """Before: nothing has happened yet. After: the order is shipped, and nobody knows that the event was handled."""
    answer = requests.post(f"{process.url}/checkout", json=CART, headers={"Idempotency-Key": "k"}, timeout=30)
    session_id = answer.json()["id"]
    process.hold(moment)
    sandbox.pay(session_id)
    wait_until(lambda: process.noted(moment) == 1)
    shipped = rows(process.view, Shipment)
    assert shipped == (1 if moment == "after" else 0)
    process.kill()
    process.release()
    process.start()
    wait_until(lambda: sum(known["pending_webhooks"] for known in sandbox.events) == 0)
    assert process.noted(moment) == 2, "the event was handled again"
    assert (order_of(process.view, session_id).state, rows(process.view, Shipment)) == (Status.PAID, 1)
    before = len(sandbox.attempts)
    told = [attempt.status for attempt in sandbox.attempts if attempt.kind == "checkout.session.completed"]
    assert told[0] is None
    assert told[-1] == 200
    sandbox.redeliver(completed(sandbox)["id"])
    wait_until(lambda: len(sandbox.attempts) == 1 + before)
    assert sandbox.attempts[-1].status == 200
    assert process.noted(moment) == 2, "and not once more"
