"""Payments and refunds of the sandbox, with the real client over the socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from example_app.sandbox import Fault
from example_app.sandbox.fields import (
    CHARGE_FIELDS,
    ENDPOINT_FIELDS,
    EVENT_FIELDS,
    PAYMENT_INTENT_FIELDS,
    REFUND_FIELDS,
)


@pytest.fixture
def session(client, params):
    return client.v1.checkout.sessions.create(params)


@pytest.fixture
def paid(sandbox, client, session):
    sandbox.pay(session.id)
    return client.v1.checkout.sessions.retrieve(session.id)


def refund(client, paid, key="key-1", **params):
    return client.v1.refunds.create({"payment_intent": paid.payment_intent, **params}, {"idempotency_key": key})


@pytest.mark.parametrize(
    ("fields", "declared_by"),
    [
        (REFUND_FIELDS, stripe.Refund),
        (EVENT_FIELDS, stripe.Event),
        (PAYMENT_INTENT_FIELDS, stripe.PaymentIntent),
        (CHARGE_FIELDS, stripe.Charge),
        ((*ENDPOINT_FIELDS, "deleted", "secret"), stripe.WebhookEndpoint),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_known_fields_are_those_of_the_installed_client(fields, declared_by):
    assert set(declared_by.__annotations__) - {"OBJECT_NAME"} - set(fields) == set()
    assert len(set(fields)) == len(fields)


def test_every_object_has_every_field(client, paid):
    made = refund(client, paid)
    objects = [
        (made, REFUND_FIELDS),
        (client.v1.refunds.retrieve(made.id), REFUND_FIELDS),
        (client.v1.charges.retrieve(made.charge), CHARGE_FIELDS),
        (client.v1.payment_intents.retrieve(paid.payment_intent), PAYMENT_INTENT_FIELDS),
        (client.v1.events.list().data[0], EVENT_FIELDS),
    ]
    assert [[name for name in fields if not hasattr(shown, name)] for shown, fields in objects] == 5 * [[]]


def test_a_card_pays_at_once(client, paid):
    assert (paid.status, paid.payment_status) == ("complete", "paid")
    intent = client.v1.payment_intents.retrieve(paid.payment_intent, {"expand": ["latest_charge"]})
    assert (intent.status, intent.amount, intent.amount_received, intent.currency) == ("succeeded", 3600, 3600, "eur")
    charge = intent.latest_charge
    assert (charge.paid, charge.status, charge.refunded, charge.amount_refunded) == (True, "succeeded", False, 0)
    assert charge.payment_intent == paid.payment_intent


def test_a_session_shows_its_payment_when_asked(client, paid):
    ask = client.v1.checkout.sessions.retrieve
    assert isinstance(ask(paid.id).payment_intent, str)
    intent = ask(paid.id, {"expand": ["payment_intent"]}).payment_intent
    assert (intent.id, intent.latest_charge[:3]) == (paid.payment_intent, "ch_")
    charge = ask(paid.id, {"expand": ["payment_intent.latest_charge"]}).payment_intent.latest_charge
    assert (charge.object, charge.id) == ("charge", intent.latest_charge)


@pytest.mark.parametrize(
    ("arrived", "payment_status", "intent_status"),
    [(True, "paid", "succeeded"), (False, "unpaid", "requires_payment_method")],
)
def test_a_transfer_takes_its_time(sandbox, client, session, arrived, payment_status, intent_status):
    def now():
        shown = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["payment_intent"]})
        return shown.status, shown.payment_status, shown.payment_intent.status

    sandbox.transfer(session.id)
    assert now() == ("complete", "unpaid", "processing")
    sandbox.settle(session.id, arrived=arrived)
    assert now() == ("complete", payment_status, intent_status)
    sandbox.settle(session.id, arrived=not arrived)
    assert now() == ("complete", payment_status, intent_status), "it is settled once"


def test_a_session_is_found_by_its_payment(client, paid, params):
    other = client.v1.checkout.sessions.create(params)
    found = client.v1.checkout.sessions.list({"payment_intent": paid.payment_intent})
    assert [session.id for session in found.data] == [paid.id]
    assert [session.id for session in client.v1.checkout.sessions.list().data] == [other.id, paid.id]
    assert client.v1.checkout.sessions.list({"payment_intent": "pi_nobody"}).data == []


def test_a_refund_sends_everything_back(sandbox, client, paid, clock):
    made = refund(client, paid, reason="requested_by_customer", metadata={"order_id": "ord_1"})
    assert (made.amount, made.currency, made.status) == (3600, "eur", "succeeded")
    assert (made.payment_intent, made.reason, made.created) == (paid.payment_intent, "requested_by_customer", clock())
    assert made.metadata["order_id"] == "ord_1"
    charge = client.v1.charges.retrieve(made.charge)
    assert (charge.refunded, charge.amount_refunded) == (True, 3600)
    assert client.v1.checkout.sessions.retrieve(paid.id).payment_status == "paid", "as Stripe has it"


def test_a_part_of_a_payment_can_be_refunded_until_nothing_is_left(client, paid):
    first, second = refund(client, paid, "a", amount=1000), refund(client, paid, "b")
    assert (first.amount, second.amount) == (1000, 2600)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        refund(client, paid, "c")
    assert caught.value.code == "charge_already_refunded"
    assert {one.id for one in client.v1.refunds.list({"payment_intent": paid.payment_intent}).data} == {
        first.id,
        second.id,
    }


def test_the_same_refund_under_the_same_key_is_one(client, paid):
    first, second = refund(client, paid), refund(client, paid)
    assert first.id == second.id
    assert len(client.v1.refunds.list().data) == 1
    with pytest.raises(stripe.IdempotencyError):
        refund(client, paid, amount=1)


def test_ten_refunds_at_once_under_ten_keys_send_the_money_back_once(sandbox, connect, client, paid):
    def attempt(number):
        try:
            return refund(connect(sandbox.url), paid, f"key-{number}").id
        except stripe.InvalidRequestError as error:
            return error.code

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(attempt, range(10)))
    assert answers.count("charge_already_refunded") == 9
    assert len(client.v1.refunds.list().data) == 1


def test_a_refund_whose_answer_is_lost_is_there_for_the_retry(sandbox, client, connect, paid):
    sandbox.inject(Fault(lost_answer=True, at="refunds"))
    made = refund(connect(sandbox.url, retries=2), paid)
    assert [one.id for one in client.v1.refunds.list().data] == [made.id]
    assert (sandbox.requests["lost"], sandbox.requests["replayed"]) == (1, 1)


@pytest.mark.parametrize("state", ["open", "transfer", "bounced"])
def test_what_was_not_paid_cannot_be_refunded(sandbox, client, session, state):
    if state != "open":
        sandbox.transfer(session.id)
    if state == "bounced":
        sandbox.settle(session.id, arrived=False)
    intent = client.v1.checkout.sessions.retrieve(session.id).payment_intent or "pi_none"
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.refunds.create({"payment_intent": intent})
    assert caught.value.http_status == (404 if state == "open" else 400)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"payment_intent": ""}, "payment_intent"),
        ({"payment_intent": "pi_nobody"}, "payment_intent"),
        ({"amount": 0}, "amount"),
        ({"amount": 3601}, "amount"),
        ({"amount": "all"}, "amount"),
        ({"reason": "boredom"}, "reason"),
        ({"instructions_email": "a@b.c"}, "instructions_email"),
        ({"expand": ["charge"]}, "expand"),
    ],
)
def test_a_bad_parameter_of_a_refund_is_named(client, paid, change, param):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        refund(client, paid, **change)
    assert caught.value.param == param
    assert client.v1.refunds.list().data == []


def test_unknown_ids_are_404(client):
    for ask in (client.v1.refunds, client.v1.payment_intents, client.v1.charges, client.v1.events):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            ask.retrieve("nobody")
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_faults_meet_what_they_are_meant_for(sandbox, client, params, paid):
    sandbox.inject(Fault(error=500, at="refunds"))
    sandbox.inject(Fault(error=500, at="retrievals"))
    client.v1.checkout.sessions.create(params)
    with pytest.raises(stripe.APIError):
        client.v1.checkout.sessions.retrieve(paid.id)
    client.v1.checkout.sessions.retrieve(paid.id)
    with pytest.raises(stripe.APIError):
        refund(client, paid)
    assert sandbox.faults_waiting == 0
