"""Events of the sandbox, and how they reach a webhook: signed, and again until they are taken."""

from __future__ import annotations

import itertools
import json
import threading
import time

import pytest
import stripe
from flask import Flask, request

from example_app.sandbox import Sandbox
from example_app.sandbox.webhooks import signature
from example_app.serving import Server

PAID = ["charge.succeeded", "payment_intent.succeeded", "checkout.session.completed"]


class Receiver:
    """A webhook on a socket of its own: notes what comes, and answers as it is told."""

    def __init__(self) -> None:
        self.received = []  # body and headers of each delivery
        self.moments = []  # when each came, in seconds
        self.answers = []  # statuses to be given before it is all 200
        self.hold = threading.Event()
        self.hold.set()
        self._server = Server()
        self.url = f"{self._server.url}/hook"
        app = Flask("receiver")
        app.post("/hook")(self._receive)
        self._server.start(app)

    def _receive(self):
        self.received.append((request.get_data(), dict(request.headers)))
        self.moments.append(time.monotonic())
        self.hold.wait(10)
        return "", self.answers.pop(0) if self.answers else 200

    def kinds(self):
        return [json.loads(body)["type"] for body, _ in self.received]

    def stop(self) -> None:
        self.hold.set()
        self._server.stop()


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def sandbox(clock, monkeypatch):
    monkeypatch.setattr("example_app.serving.POLL_SECONDS", 0.005)
    with Sandbox(clock=clock, redelivery=0.02) as sandbox:
        yield sandbox


@pytest.fixture
def session(client, params):
    return client.v1.checkout.sessions.create(params)


def kinds(sandbox):
    return [event["type"] for event in sandbox.events]


# --- Events -------------------------------------------------------------------------------------------------------


def test_a_payment_by_card_is_three_events_in_stripes_order(sandbox, session):
    sandbox.pay(session.id)
    sandbox.pay(session.id)
    assert kinds(sandbox) == PAID


@pytest.mark.parametrize(
    ("arrived", "then"),
    [
        (True, ["charge.succeeded", "payment_intent.succeeded", "checkout.session.async_payment_succeeded"]),
        (False, ["charge.failed", "payment_intent.payment_failed", "checkout.session.async_payment_failed"]),
    ],
)
def test_a_transfer_is_told_of_twice(sandbox, session, arrived, then):
    sandbox.transfer(session.id)
    assert kinds(sandbox) == ["payment_intent.processing", "checkout.session.completed"]
    assert sandbox.events[-1]["data"]["object"]["payment_status"] == "unpaid"
    sandbox.settle(session.id, arrived=arrived)
    assert kinds(sandbox)[2:] == then


def test_a_refund_is_told_of_with_the_charge_as_it_is_then(sandbox, client, session):
    sandbox.pay(session.id)
    intent = client.v1.checkout.sessions.retrieve(session.id).payment_intent
    for amount in (600, 3000):
        client.v1.refunds.create({"payment_intent": intent, "amount": amount})
    assert kinds(sandbox)[3:] == 2 * ["refund.created", "charge.refunded"]
    told = [event["data"]["object"] for event in sandbox.events[3:]]
    assert [charge["refunded"] for charge in told[1::2]] == [False, True]
    assert [refund["amount"] for refund in told[::2]] == [600, 3000]


def test_expiry_is_an_event_whether_asked_for_or_by_time_alone(sandbox, client, params, clock, wait_until):
    first, second = (client.v1.checkout.sessions.create(params) for _ in range(2))
    client.v1.checkout.sessions.expire(first.id)
    assert [event["data"]["object"]["id"] for event in sandbox.events] == [first.id]
    clock.advance(24 * 3600)
    wait_until(lambda: len(kinds(sandbox)) == 2)  # nobody asked for the session
    assert kinds(sandbox) == 2 * ["checkout.session.expired"]
    assert sandbox.events[1]["data"]["object"]["status"] == "expired"
    assert sandbox.events[1]["data"]["object"]["id"] == second.id


def test_events_can_be_listed_the_newest_first(sandbox, client, session, params, clock):
    sandbox.pay(session.id)
    found = client.v1.events.list()
    assert [event.type for event in found.data] == PAID[::-1]
    assert {(event.object, event.livemode, event.created) for event in found.data} == {("event", False, int(clock()))}
    of_kind = client.v1.events.list({"type": "checkout.session.completed"}).data
    assert [event.data.object.id for event in of_kind] == [session.id]
    assert client.v1.events.retrieve(of_kind[0].id).type == "checkout.session.completed"
    page = client.v1.events.list({"limit": 2})
    assert (len(page.data), page.has_more) == (2, True)
    assert [event.type for event in page.auto_paging_iter()] == PAID[::-1]


# --- Endpoints ----------------------------------------------------------------------------------------------------


def test_an_endpoint_is_made_over_the_api_and_only_then_shows_its_secret(client, receiver):
    made = client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["charge.refunded"]})
    assert made.secret.startswith("whsec_")
    assert (made.url, made.enabled_events, made.status) == (receiver.url, ["charge.refunded"], "enabled")
    (listed,) = client.v1.webhook_endpoints.list().data
    assert (listed.id, hasattr(listed, "secret")) == (made.id, False)
    assert not hasattr(client.v1.webhook_endpoints.retrieve(made.id), "secret")
    assert client.v1.webhook_endpoints.delete(made.id).deleted
    assert client.v1.webhook_endpoints.list().data == []
    for call in (client.v1.webhook_endpoints.retrieve, client.v1.webhook_endpoints.delete):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            call(made.id)
        assert caught.value.http_status == 404


@pytest.mark.parametrize(
    "url",
    ["https://example.com/hook", "http://example.com/", "http://127.0.0.1.example.com/", "http://127.0.0.1@example.com/",
     "https://127.0.0.1/", "ftp://localhost/", "/hook", "http://[::1/", "http://localhost:port/", "http://localhost/ü"],
)  # fmt: skip
def test_nothing_leaves_this_computer(sandbox, client, url):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.webhook_endpoints.create({"url": url, "enabled_events": ["*"]})
    assert caught.value.param == "url"
    assert client.v1.webhook_endpoints.list().data == []


@pytest.mark.parametrize("missing", ["url", "enabled_events"])
def test_an_endpoint_needs_an_address_and_something_to_hear(client, receiver, missing):
    params = {"url": receiver.url, "enabled_events": ["*"]}
    del params[missing]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.webhook_endpoints.create(params)
    assert caught.value.param == missing


# --- Deliveries ---------------------------------------------------------------------------------------------------


def test_every_event_is_delivered_with_a_signature_that_the_real_client_takes(
    sandbox, client, session, receiver, wait_until
):
    secret = sandbox.add_webhook(receiver.url)
    sandbox.pay(session.id)
    wait_until(lambda: len(receiver.received) == 3)
    assert sorted(receiver.kinds()) == sorted(PAID)
    for body, headers in receiver.received:
        event = client.construct_event(body, headers["Stripe-Signature"], secret)
        assert event.id in [known["id"] for known in sandbox.events]
        assert headers["Content-Type"].startswith("application/json")
        with pytest.raises(stripe.SignatureVerificationError):
            client.construct_event(body + b" ", headers["Stripe-Signature"], secret)
        with pytest.raises(stripe.SignatureVerificationError):
            client.construct_event(body, headers["Stripe-Signature"], "whsec_other")
    wait_until(lambda: sum(event["pending_webhooks"] for event in sandbox.events) == 0)
    assert [attempt.status for attempt in sandbox.attempts] == 3 * [200]


def test_an_old_signature_is_refused_by_the_real_client(client):
    with pytest.raises(stripe.SignatureVerificationError, match="tolerance"):
        client.construct_event(b"{}", signature(b"{}", "whsec_1", time.time() - 301), "whsec_1")


def test_an_endpoint_hears_what_it_asked_for(sandbox, session, receiver, wait_until):
    sandbox.add_webhook(receiver.url, ["checkout.session.completed"])
    sandbox.pay(session.id)
    wait_until(lambda: len(sandbox.attempts) == 1)
    assert receiver.kinds() == ["checkout.session.completed"]
    assert [event["pending_webhooks"] for event in sandbox.events] == [0, 0, 0]


@pytest.mark.parametrize("refusals", [[500], [404, 503, 302, 409, 400]])
def test_an_event_that_is_not_taken_comes_again_until_it_is(sandbox, session, receiver, wait_until, refusals):
    receiver.answers = list(refusals)
    sandbox.add_webhook(receiver.url, ["checkout.session.completed"])
    sandbox.pay(session.id)
    wait_until(lambda: len(sandbox.attempts) == len(refusals) + 1)
    assert [attempt.status for attempt in sandbox.attempts] == [*refusals, 200]
    assert len({body for body, _ in receiver.received}) == 1
    assert len({attempt.event_id for attempt in sandbox.attempts}) == 1


def test_an_endpoint_that_is_away_gets_its_events_when_it_is_back(sandbox, session, wait_until):
    with Server() as server:
        port, url = server.port, f"{server.url}/hook"
    sandbox.add_webhook(url)
    sandbox.pay(session.id)
    wait_until(lambda: len(sandbox.attempts) >= 6)
    assert {attempt.status for attempt in sandbox.attempts} == {None}
    app = Flask("back")
    app.post("/hook")(lambda: "")
    with Server(port=port) as server:
        server.start(app)
        wait_until(lambda: [attempt.taken for attempt in sandbox.attempts].count(True) == 3)


def test_the_waits_between_deliveries_grow(sandbox, session, receiver, wait_until):
    receiver.answers = 5 * [500]
    sandbox.add_webhook(receiver.url, ["checkout.session.completed"])
    sandbox.pay(session.id)
    wait_until(lambda: len(receiver.moments) == 6)
    for number, (earlier, later) in enumerate(itertools.pairwise(receiver.moments)):
        assert later - earlier >= 0.02 * 2**number


def test_an_event_can_be_delivered_again_by_hand(sandbox, session, receiver, wait_until):
    sandbox.add_webhook(receiver.url, ["checkout.session.completed"])
    sandbox.pay(session.id)
    wait_until(lambda: len(sandbox.attempts) == 1)
    event = sandbox.events[-1]
    sandbox.redeliver(event["id"])
    wait_until(lambda: len(sandbox.attempts) == 2)
    assert [json.loads(body)["id"] for body, _ in receiver.received] == 2 * [event["id"]]


def test_a_deleted_endpoint_hears_nothing_more(sandbox, client, params, receiver, wait_until):
    receiver.answers = 1000 * [500]
    made = client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["checkout.session.completed"]})
    sandbox.pay(client.v1.checkout.sessions.create(params).id)
    wait_until(lambda: len(receiver.received) >= 2)
    client.v1.webhook_endpoints.delete(made.id)
    other = Receiver()
    sandbox.add_webhook(other.url, ["checkout.session.completed"])
    seen = len(receiver.received)
    sandbox.pay(client.v1.checkout.sessions.create(params).id)
    wait_until(lambda: len(other.received) == 1)
    other.stop()
    assert len(receiver.received) <= seen + 1, "at most the one that was under way"


def test_an_endpoint_that_hangs_does_not_hold_up_the_end_nor_the_others(clock, connect, params, receiver, wait_until):
    before = set(threading.enumerate())
    quick = Receiver()
    receiver.hold.clear()
    sandbox = Sandbox(clock=clock).start()
    for url in (receiver.url, quick.url):
        sandbox.add_webhook(url, ["checkout.session.completed"])
    sandbox.pay(connect(sandbox.url).v1.checkout.sessions.create(params).id)
    wait_until(lambda: receiver.received and quick.received)
    started = time.monotonic()
    sandbox.stop()
    assert time.monotonic() - started < 5, "less than the endpoint's answer would take"
    sandbox.stop()
    receiver.stop()
    quick.stop()
    wait_until(lambda: not [thread for thread in set(threading.enumerate()) - before if "webhook" in thread.name])


def test_a_sandbox_that_was_never_started_can_be_stopped():
    Sandbox().stop()
