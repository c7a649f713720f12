"""The hosted payment page, as a browser uses it."""

from __future__ import annotations

import re
import secrets
import time
import urllib.request
from typing import Any

import pytest
from flask.testing import FlaskClient

from example_app.sandbox.account import Account
from example_app.sandbox.app import create_app, format_amount
from example_app.sandbox.payments import NewRefund

FORM = {
    "mode": "payment",
    "line_items[0][price_data][currency]": "eur",
    "line_items[0][price_data][unit_amount]": "1850",
    "line_items[0][price_data][product_data][name]": "<Mug>",
    "line_items[0][quantity]": "2",
    "success_url": "http://shop.example/orders/1?session={CHECKOUT_SESSION_ID}",
    "cancel_url": "http://shop.example/products/mug",
}


@pytest.fixture
def account(clock) -> Account:
    return Account(clock, secrets.token_hex)


@pytest.fixture
def browser(account: Account) -> FlaskClient:
    return create_app(account).test_client()


@pytest.fixture
def session(browser: FlaskClient) -> dict[str, Any]:
    answer = browser.post("/v1/checkout/sessions", data=FORM, headers={"Authorization": "Bearer sk_test_1"})
    assert answer.status_code == 200
    return answer.get_json()


def press(browser: FlaskClient, session: dict[str, Any], action: str) -> Any:
    return browser.post(f"/pay/{session['id']}", data={"action": action})


def status(account: Account, session: dict[str, Any]) -> tuple[str, bool]:
    now = account.sessions.get(session["id"])
    return now.status, now.paid


def test_the_page_says_that_it_is_a_test_and_what_it_costs(browser, session):
    page = browser.get(f"/pay/{session['id']}").text
    assert "Test mode – offline sandbox" in page
    assert "&lt;Mug&gt;" in page
    assert "37.00 EUR" in page
    assert "2 × 18.50 EUR" in page


def test_paying_completes_the_session_and_leads_back_with_its_id(browser, account, session):
    answer = press(browser, session, "pay")
    assert answer.status_code == 303
    assert answer.location == f"http://shop.example/orders/1?session={session['id']}"
    assert status(account, session) == ("complete", True)


def test_paying_twice_pays_once(browser, account, session):
    first = press(browser, session, "pay")
    intent = account.sessions.get(session["id"]).payment_intent
    second = press(browser, session, "pay")
    assert second.location == first.location
    assert account.sessions.get(session["id"]).payment_intent == intent
    assert intent.startswith("pi_")


def test_a_paid_session_says_so(browser, session):
    press(browser, session, "pay")
    page = browser.get(f"/pay/{session['id']}").text
    assert "This is paid" in page
    assert "<form" not in page


@pytest.mark.parametrize("action", ["decline", "cancel"])
def test_after_paying_nothing_can_be_taken_back_by_a_click(browser, account, session, action):
    press(browser, session, "pay")
    assert press(browser, session, action).location.startswith("http://shop.example/orders/1")
    assert status(account, session) == ("complete", True)


def test_a_declined_card_leaves_the_session_open(browser, account, session):
    answer = browser.post(f"/pay/{session['id']}", data={"action": "decline"}, follow_redirects=True)
    assert "The card was declined" in answer.text
    assert status(account, session) == ("open", False)
    assert press(browser, session, "pay").status_code == 303
    assert status(account, session) == ("complete", True)


def test_cancelling_leads_back_and_leaves_the_session_open(browser, account, session):
    assert press(browser, session, "cancel").location == FORM["cancel_url"]
    assert status(account, session) == ("open", False)


def test_an_expired_session_cannot_be_paid_and_says_so(browser, account, session):
    account.sessions.expire(session["id"])
    answer = browser.post(f"/pay/{session['id']}", data={"action": "pay"}, follow_redirects=True)
    assert "has expired" in answer.text
    assert "<form" not in answer.text
    assert status(account, session) == ("expired", False)


def test_an_unknown_action_is_400(browser, account, session):
    assert press(browser, session, "steal").status_code == 400
    assert status(account, session) == ("open", False)


def test_an_unknown_session_is_a_page_of_its_own(browser):
    answer = browser.get("/pay/cs_test_nobody")
    assert answer.status_code == 404
    assert "There is no such payment" in answer.text


def test_pages_load_nothing_from_elsewhere(browser, session):
    answer = browser.get(f"/pay/{session['id']}")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "style=" not in answer.text


def test_the_front_page_explains_the_sandbox(browser, session):
    page = browser.get("/").text
    assert "stand-in for Stripe" in page
    assert "/_sandbox/state" in page


def test_an_answer_cannot_be_lost_without_a_socket(browser, account):
    from example_app.sandbox import Fault

    browser.application.testing = True
    account.faults.put(Fault(lost_answer=True))
    with pytest.raises(RuntimeError, match="real socket"):
        browser.post("/v1/checkout/sessions", data=FORM, headers={"Authorization": "Bearer sk_test_1"})


@pytest.mark.parametrize(("amount", "text"), [(0, "0.00 EUR"), (5, "0.05 EUR"), (123456789, "1,234,567.89 EUR")])
def test_amounts_are_written_for_the_eye(amount, text):
    assert format_amount(amount, "eur") == text


def test_a_slow_bank_takes_its_time_and_the_money_once(browser, account, session, monkeypatch):
    monkeypatch.setattr("example_app.sandbox.pages.SLOW_SECONDS", 0.3)
    started = time.monotonic()
    answer = press(browser, session, "slow")
    assert time.monotonic() - started >= 0.3
    assert answer.location.startswith("http://shop.example/orders/1")
    assert status(account, session) == ("complete", True)
    assert len(account.events.all()) == 3


def test_a_slow_bank_does_not_hold_up_the_end(browser, account, session):
    account.close()
    started = time.monotonic()
    press(browser, session, "slow")
    assert time.monotonic() - started < 2


def test_a_payment_whose_answer_is_lost_is_a_payment(sandbox, client, params):
    session = client.v1.checkout.sessions.create(params)
    with pytest.raises(OSError, match="Remote end closed"):
        urllib.request.urlopen(session.url, b"action=lost", timeout=5)
    assert sandbox.sessions[0]["payment_status"] == "paid"
    with urllib.request.urlopen(session.url, timeout=5) as page:
        assert "This is paid" in page.read().decode()


def test_a_lost_answer_of_a_session_that_is_over_changes_nothing(browser, account, session):
    account.sessions.expire(session["id"])
    assert press(browser, session, "lost").status_code == 303
    assert status(account, session) == ("expired", False)


@pytest.mark.parametrize(
    ("action", "paid", "words"), [("arrive", True, "This is paid"), ("bounce", False, "did not arrive")]
)
def test_a_transfer_is_settled_by_a_button(browser, account, session, action, paid, words):
    assert press(browser, session, "transfer").location.startswith("http://shop.example/orders/1")
    assert status(account, session) == ("complete", False)
    assert "on its way" in browser.get(f"/pay/{session['id']}").text
    press(browser, session, action)
    press(browser, session, "arrive" if action == "bounce" else "bounce")
    assert status(account, session) == ("complete", paid)
    assert words in browser.get(f"/pay/{session['id']}").text


@pytest.mark.parametrize("action", ["arrive", "bounce"])
def test_without_a_transfer_there_is_nothing_to_settle(browser, account, session, action):
    press(browser, session, action)
    assert status(account, session) == ("open", False)


def test_a_refunded_payment_says_so(browser, account, session):
    press(browser, session, "pay")
    intent = account.sessions.get(session["id"]).payment_intent
    account.sessions.refund(NewRefund(intent, 1200))
    assert "12.00 EUR of it went back" in browser.get(f"/pay/{session['id']}").text


def test_the_front_page_counts_events_and_names_the_webhooks(browser, account, session):
    account.endpoints.add("http://127.0.0.1:1/webhook", ["*"])
    press(browser, session, "pay")
    page = browser.get("/").text
    assert "http://127.0.0.1:1/webhook" in page
    assert re.search(r"still to be acknowledged</th><td>3<", page)


def test_the_state_shows_events_and_an_event_can_be_sent_again(browser, account, session):
    press(browser, session, "pay")
    state = browser.get("/_sandbox/state").get_json()
    assert [event["type"] for event in state["events"]][-1] == "checkout.session.completed"
    again = f"/_sandbox/events/{state['events'][0]['id']}/deliver"
    assert browser.post(again, json={}).status_code == 202
    assert browser.post(again, data="{}").status_code == 415, "no other site's form can do that"
    assert browser.post("/_sandbox/events/evt_nobody/deliver", json={}).status_code == 404
