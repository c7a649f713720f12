"""Buying by a plain HTML form, over HTTP."""

from __future__ import annotations

import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select

from example_app.buying import show_problem
from example_app.orders import Order, db
from example_app.sandbox import Fault
from flask_idempotent import OutcomeUnknown, RequestInProgress, StoreUnavailable

AS_A_BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
AS_THE_SCRIPT = {"Accept": "application/problem+json, text/html;q=0.9, */*;q=0.8", "Idempotency-Script": "1"}
MUGS = {"product": "morning-mug", "quantity": "2"}


def buy(browser, headers=AS_A_BROWSER, key="key-1", **fields):
    form = {**MUGS, **fields} | ({"idempotency_key": key} if key else {})
    return browser.post("/buy", data=form, headers=headers)


def orders_in(shop):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalar(select(func.count()).select_from(Order))


def hidden(page):
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))


def test_a_form_leads_to_the_payment_page(browser, shop, sandbox):
    answer = buy(browser)
    [session] = sandbox.sessions
    assert (answer.status_code, answer.location) == (303, session["url"])
    assert session["amount_total"] == 2 * 1800
    assert orders_in(shop) == 1


def test_the_form_of_a_product_page_can_be_sent_as_it_is(browser, shop):
    form = {**hidden(browser.get("/products/morning-mug").text), "quantity": "1"}
    assert uuid.UUID(form["idempotency_key"])
    answers = [browser.post("/buy", data=form, headers=AS_A_BROWSER) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [303, 303]
    assert answers[0].location == answers[1].location
    assert orders_in(shop) == 1


def test_each_product_page_has_a_key_of_its_own_and_is_kept_by_nobody_but_the_browser(browser):
    pages = [browser.get("/products/morning-mug") for _ in range(2)]
    assert len({hidden(page.text)["idempotency_key"] for page in pages}) == 2
    assert {page.headers["Cache-Control"] for page in pages} == {"private, no-cache"}


def test_forms_that_come_at_once_all_lead_to_the_one_payment_page(shop, sandbox):
    sandbox.inject(Fault(delay=0.3))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: buy(shop.test_client()), range(8)))
    assert {answer.status_code for answer in answers} == {303}
    assert {answer.location for answer in answers} == {sandbox.sessions[0]["url"]}
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_the_script_is_told_where_the_answer_leads_and_a_browser_is_led_there(browser, sandbox):
    told, led = buy(browser, AS_THE_SCRIPT), buy(browser)
    assert (told.status_code, told.location) == (200, None)
    assert told.headers["Idempotency-Location"] == led.location == sandbox.sessions[0]["url"]
    assert (led.status_code, led.headers["Idempotent-Replayed"]) == (303, "true")


def test_the_policy_lets_the_form_lead_to_the_payment_page_and_nowhere_else(open_shop, sandbox):
    assert f"form-action 'self' {sandbox.url};" in policy(open_shop())
    assert f"form-action 'self' {sandbox.url};" in policy(open_shop(STRIPE_API_BASE=f"{sandbox.url}/v1?x"))
    assert "form-action 'self' https://checkout.stripe.com;" in policy(open_shop(STRIPE_API_BASE=None))


def policy(shop):
    return shop.test_client().get("/").headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"quantity": "0"}, "from 1 to 20"),
        ({"quantity": "21"}, "from 1 to 20"),
        ({"quantity": "two"}, "from 1 to 20"),
        ({"quantity": "２"}, "from 1 to 20"),
        ({"quantity": "9" * 5000}, "from 1 to 20"),
        ({"product": "gold-bar"}, "no such product"),
        ({"product": "<script>"}, "no such product"),
    ],
)
def test_a_refusal_is_a_page_of_the_shop_and_buys_nothing(browser, shop, sandbox, fields, said):
    answer = buy(browser, **fields)
    assert (answer.status_code, answer.mimetype) == (400, "text/html")
    assert said in answer.text
    assert "This order did not go through" in answer.text
    assert "<form" not in answer.text
    assert "<script>" not in answer.text
    assert (orders_in(shop), sandbox.sessions) == (0, [])


def test_a_script_gets_the_refusal_as_problem_details(browser):
    answer = buy(browser, AS_THE_SCRIPT, quantity="0")
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert answer.get_json()["field"] == "items[0].quantity"


def test_without_a_key_nothing_is_bought(browser, shop):
    answer = buy(browser, key=None)
    assert answer.status_code == 400
    assert "This order did not go through" in answer.text
    assert orders_in(shop) == 0


def test_a_changed_form_under_its_old_key_offers_to_order_that_as_well(browser, shop):
    buy(browser)
    answer = buy(browser, quantity="3")
    assert answer.status_code == 422
    assert "The first one stands as it is" in answer.text
    form = hidden(answer.text)
    assert (form["product"], form["quantity"]) == ("morning-mug", "3")
    assert form["idempotency_key"] != "key-1"
    assert orders_in(shop) == 1
    assert browser.post("/buy", data=form, headers=AS_A_BROWSER).status_code == 303
    assert orders_in(shop) == 2


@pytest.mark.parametrize(
    ("problem", "title", "button"),
    [
        (RequestInProgress(retry_after=1), "Your order is being processed", "Ask again"),
        (StoreUnavailable(retry_after=1), "We could not finish this right now", "Try again"),
        (OutcomeUnknown(), "We do not know how this order ended", None),
    ],
)
def test_what_may_pass_can_be_sent_again_with_the_same_key(shop, problem, title, button):
    form = {**MUGS, "idempotency_key": "key-1"}
    with shop.test_request_context("/buy", method="POST", data=form, headers=AS_A_BROWSER):
        page = shop.make_response(show_problem(problem))
    assert page.status_code == problem.code
    assert page.headers.get("Retry-After") == ("1" if button else None)
    text = page.get_data(as_text=True)
    assert f"<h1>{title}</h1>" in text
    assert (f">{button}</button>" in text) is bool(button)
    assert hidden(text) == (form if button else {})
