"""Money goes back once, however often it is asked for: over HTTP, with the real client and the sandbox."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from example_app.orders import Payment, Status
from example_app.payments import settle
from example_app.sandbox import Fault

from .shop_tables import buy, change, order_of

JSON = {"Accept": "application/json"}


@pytest.fixture
def order(browser, shop, sandbox, wait_until):
    """A paid order."""
    session_id = buy(browser)
    sandbox.pay(session_id)
    wait_until(lambda: order_of(shop, session_id).state is Status.PAID)
    return order_of(shop, session_id)


def ask(browser, order, key="refund-1", headers=JSON):
    return browser.post(f"/orders/{order.id}/refund", headers={**headers, "Idempotency-Key": key})


def sent_back(client):
    return [refund.amount for refund in client.v1.refunds.list().data]


def test_a_refund_sends_everything_back_and_says_so(browser, shop, order, client):
    answer = ask(browser, order)
    assert answer.status_code == 200, answer.text
    status = answer.get_json()
    assert (status["status"], status["label"], status["refundable"]) == ("refunded", "Refunded", False)
    (refund,) = client.v1.refunds.list().data
    assert (refund.amount, refund.payment_intent) == (3600, order.payment.payment_intent)
    assert (refund.metadata["order_id"], refund.reason) == (order.id, "requested_by_customer")
    assert browser.get(f"/orders/{order.id}.json").get_json() == status


def test_asking_twice_is_one_refund_and_one_answer(browser, order, client, sandbox):
    first, second = ask(browser, order), ask(browser, order)
    assert (first.data, second.headers["Idempotent-Replayed"]) == (second.data, "true")
    assert sent_back(client) == [3600]


def test_asking_under_another_key_is_the_same_refund(browser, order, client):
    ask(browser, order)
    assert ask(browser, order, "refund-2").get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


@pytest.mark.parametrize("same_key", [True, False])
def test_ten_requests_at_once_send_the_money_back_once(shop, order, client, sandbox, same_key, wait_until):
    sandbox.inject(Fault(delay=0.3, at="refunds"))
    start = threading.Barrier(10, timeout=20)

    def attempt(number):
        start.wait()
        return ask(shop.test_client(), order, "k" if same_key else f"k-{number}").status_code

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(attempt, range(10)))
    assert 200 in answers
    assert set(answers) <= {200, 409}
    assert sent_back(client) == [3600]
    wait_until(lambda: order_of(shop, order.session_id).state is Status.REFUNDED)


def test_a_form_leads_back_to_the_order(browser, order, client):
    page = browser.get(f"/orders/{order.id}").text
    action, key = re.search(
        r'action="(/orders/[^"]+/refund)".*?name="idempotency_key" value="([^"]+)"', page, re.S
    ).groups()
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    for _ in range(2):
        answer = browser.post(action, data={"idempotency_key": key}, headers=accept)
        assert (answer.status_code, answer.location) == (303, f"/orders/{order.id}")
    assert sent_back(client) == [3600]
    page = browser.get(f"/orders/{order.id}").text
    assert "on its way back" in page
    assert "/refund" not in page


def test_a_buyer_is_told_what_is_not_known_yet_and_can_ask_again(browser, shop, order, client, sandbox, connect):
    shop.extensions["idempotency.stripe"] = connect(sandbox.url)
    sandbox.inject(Fault(error=500, at="refunds"))
    accept = {"Accept": "text/html"}
    answer = browser.post(f"/orders/{order.id}/refund", data={"idempotency_key": "k"}, headers=accept)
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "the money goes back once" in answer.text
    assert 'name="idempotency_key" value="k"' in answer.text
    assert f'href="/orders/{order.id}"' in answer.text
    assert answer.headers["Retry-After"]
    for _ in range(2):  # the first one meets the failure that Stripe has kept
        answer = browser.post(f"/orders/{order.id}/refund", data={"idempotency_key": "k"}, headers=accept)
    assert answer.status_code == 303
    assert sent_back(client) == [3600]


def test_a_buyer_is_told_why_nothing_goes_back(browser, shop):
    order = order_of(shop, buy(browser))
    answer = browser.post(f"/orders/{order.id}/refund", data={"idempotency_key": "k"}, headers={"Accept": "text/html"})
    assert answer.status_code == 409
    assert "Only an order that is paid can be refunded" in answer.text
    assert "<form" not in answer.text


def test_without_a_key_nothing_goes_back(browser, order, client):
    answer = browser.post(f"/orders/{order.id}/refund", headers=JSON)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "key-missing")
    assert sent_back(client) == []


def test_an_unknown_order_is_404(browser):
    assert browser.post("/orders/ord_nobody/refund", headers={"Idempotency-Key": "k"}).status_code == 404


@pytest.mark.parametrize("state", ["open", "transfer", "expire"])
def test_what_is_not_paid_is_not_refunded(browser, shop, sandbox, client, wait_until, state):
    session_id = buy(browser)
    if state != "open":
        getattr(sandbox, state)(session_id)
        wait_until(lambda: order_of(shop, session_id).state is not Status.OPEN)
    order = order_of(shop, session_id)
    answer = ask(browser, order)
    assert (answer.status_code, answer.get_json()["code"]) == (409, "order-not-refundable")
    assert order_of(shop, session_id).state is order.state
    assert f"/orders/{order.id}/refund" not in browser.get(f"/orders/{order.id}").text


def test_a_refund_made_at_stripe_is_heard_of(shop, order, client, wait_until):
    client.v1.refunds.create({"payment_intent": order.payment.payment_intent})
    wait_until(lambda: order_of(shop, order.session_id).state is Status.REFUNDED)


def test_a_part_that_goes_back_changes_nothing_and_the_rest_can_follow(
    browser, shop, order, client, sandbox, wait_until
):
    client.v1.refunds.create({"payment_intent": order.payment.payment_intent, "amount": 600})
    wait_until(lambda: sum(event["pending_webhooks"] for event in sandbox.events) == 0)
    assert order_of(shop, order.session_id).state is Status.PAID
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sorted(sent_back(client)) == [600, 3000]


# --- Failures on the way --------------------------------------------------------------------------------------------


def test_an_answer_that_the_network_lost_is_one_refund(browser, order, client, sandbox):
    sandbox.inject(Fault(lost_answer=True, at="refunds"))
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


def test_when_all_answers_are_lost_the_event_tells_and_the_retry_finds_the_same_refund(
    browser, shop, order, client, sandbox, connect, wait_until
):
    shop.extensions["idempotency.stripe"] = connect(sandbox.url)  # one that does not try again by itself
    sandbox.inject(Fault(lost_answer=True, at="refunds"))
    answer = ask(browser, order)
    assert (answer.status_code, answer.get_json()["retryable"]) == (503, True)
    wait_until(lambda: order_of(shop, order.session_id).state is Status.REFUNDED)
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


def test_while_the_outcome_is_unknown_every_key_asks_for_the_same_refund(
    browser, shop, order, client, sandbox, connect
):
    shop.config["STRIPE_WEBHOOK_SECRET"] = "whsec_other"  # so that no event arrives
    shop.extensions["idempotency.stripe"] = connect(sandbox.url)
    sandbox.inject(Fault(lost_answer=True, at="refunds"))
    assert ask(browser, order).status_code == 503
    waiting = order_of(shop, order.session_id)
    assert waiting.state is Status.REFUNDING
    told = browser.get(f"/orders/{order.id}.json").get_json()
    assert (told["final"], told["refundable"]) == (False, True)
    assert "Ask again for the refund" in browser.get(f"/orders/{order.id}").text
    replayed = sandbox.requests["replayed"]
    assert ask(browser, order, "refund-2").get_json()["status"] == "refunded"
    assert sandbox.requests["replayed"] == replayed + 1, "under the first one's key"
    assert sent_back(client) == [3600]


def test_a_failure_that_stripe_keeps_does_not_stand_in_the_way_for_a_day(browser, shop, order, client, sandbox):
    sandbox.inject(Fault(error=500, at="refunds"))
    answer = ask(browser, order)
    assert (answer.status_code, answer.get_json()["retryable"]) == (503, True)
    assert order_of(shop, order.session_id).state is Status.PAID
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


def test_a_refund_that_stripe_says_was_made_before_is_a_refund(browser, shop, order, client, sandbox):
    """What a kept failure had done all the same, or somebody at the dashboard, whose event has not arrived."""
    shop.config["STRIPE_WEBHOOK_SECRET"] = "whsec_other"
    client.v1.refunds.create({"payment_intent": order.payment.payment_intent})
    assert order_of(shop, order.session_id).state is Status.PAID
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


def test_a_refund_that_stripe_refuses_leaves_the_order_paid(browser, shop, order, client, caplog):
    change(shop, Payment, payment_intent="pi_nobody")
    answer = ask(browser, order)
    assert (answer.status_code, answer.get_json()["code"]) == (500, "payment-misconfigured")
    assert "pi_nobody" in caplog.text
    assert order_of(shop, order.session_id).state is Status.PAID
    change(shop, Payment, payment_intent=order.payment.payment_intent)
    assert ask(browser, order).get_json()["status"] == "refunded"
    assert sent_back(client) == [3600]


def test_while_money_goes_back_an_old_event_does_not_make_the_order_paid_again(browser, shop, order, sandbox, connect):
    shop.extensions["idempotency.stripe"] = connect(sandbox.url)
    sandbox.inject(Fault(error=500, at="refunds"))
    assert ask(browser, order).status_code == 503
    assert order_of(shop, order.session_id).state is Status.REFUNDING
    with shop.app_context():
        settle(order.session_id)  # as after the retention of the event
    assert order_of(shop, order.session_id).state is Status.REFUNDING
