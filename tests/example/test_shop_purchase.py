"""The whole purchase over HTTP: the shop, the package, the real client, and the sandbox on its socket."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, update

from example_app import purchase
from example_app.catalog import PRODUCTS
from example_app.orders import Order, db
from example_app.sandbox import Fault

CART = {"items": [{"product": "morning-mug", "quantity": 2}, {"product": "wool-blanket", "quantity": 1}]}


def buy(browser, key="key-1", cart=CART, **options):
    headers = {"Idempotency-Key": key} if key else {}
    return browser.post("/checkout", json=cart, headers=headers, **options)


def orders_in(shop):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalar(select(func.count()).select_from(Order))


def only_order(shop):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalars(select(Order)).one()


def change(shop, **values):
    with shop.app_context(), db.session.session_factory.begin() as session:
        session.execute(update(Order).values(**values))


def test_a_purchase_makes_one_order_and_one_session_at_the_shops_prices(browser, shop, sandbox):
    answer = buy(browser)
    assert answer.status_code == 200
    [session] = sandbox.sessions
    order = only_order(shop)
    assert answer.get_json() == {"id": session["id"], "url": session["url"]}
    assert (session["amount_total"], session["currency"]) == (2 * 1800 + 12900, "eur")
    assert (session["client_reference_id"], session["metadata"]) == (order.id, {"order_id": order.id})
    assert session["success_url"] == f"http://localhost/orders/{order.id}"
    assert session["cancel_url"] == "http://localhost/products/morning-mug?quantity=2&checkout=cancelled"
    assert (order.status, order.session_id, order.session_url) == ("open", session["id"], session["url"])


def test_pressing_twice_is_one_purchase(browser, shop, sandbox):
    first, second = buy(browser), buy(browser)
    assert first.data == second.data
    assert second.headers["Idempotent-Replayed"] == "true"
    assert (orders_in(shop), len(sandbox.sessions), sandbox.requests["executed"]) == (1, 1, 1)


def test_twenty_presses_at_once_are_one_purchase(shop, sandbox):
    sandbox.inject(Fault(delay=0.1))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: buy(shop.test_client()), range(20)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.data for answer in answers if answer.status_code == 200}) == 1
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_two_intents_are_two_purchases(browser, shop, sandbox):
    assert buy(browser, str(uuid.uuid4())).get_json() != buy(browser, str(uuid.uuid4())).get_json()
    assert (orders_in(shop), len(sandbox.sessions)) == (2, 2)


def test_an_answer_that_stripe_gave_and_the_network_lost_is_one_session(browser, shop, sandbox):
    sandbox.inject(Fault(lost_answer=True))
    answer = buy(browser)
    assert answer.status_code == 200
    assert [session["id"] for session in sandbox.sessions] == [answer.get_json()["id"]]
    assert only_order(shop).session_id == answer.get_json()["id"]


def test_when_all_answers_are_lost_the_retry_of_the_buyer_finds_the_same_session(browser, shop, sandbox, connect):
    client = connect(sandbox.url)  # one that does not try again by itself
    shop.extensions["idempotency.stripe"] = client
    sandbox.inject(Fault(lost_answer=True))
    first = buy(browser)
    assert first.status_code == 503
    assert first.get_json()["retryable"] is True
    assert only_order(shop).status == "created"
    second = buy(browser)
    assert second.status_code == 200
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)
    assert only_order(shop).status == "open"


def test_a_failure_that_stripe_keeps_does_not_end_the_order(browser, shop, sandbox):
    sandbox.inject(Fault(error=500))
    answer = buy(browser)
    answer = answer if answer.status_code == 200 else buy(browser)
    assert answer.status_code == 200
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_after_a_restart_the_same_key_finds_the_same_order_and_session(browser, shop, sandbox, open_shop):
    before = buy(browser).get_json()
    after = buy(open_shop().test_client())
    assert after.status_code == 200
    assert after.get_json() == before
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_a_retry_under_another_host_name_and_at_other_prices_sends_stripe_the_same(
    browser, sandbox, open_shop, monkeypatch
):
    before = buy(browser).get_json()
    dearer = {slug: dataclass_with_price(product, 99_900) for slug, product in PRODUCTS.items()}
    monkeypatch.setattr(purchase, "PRODUCTS", dearer)
    after = buy(open_shop().test_client(), base_url="http://127.0.0.1:5000")
    assert (after.status_code, after.get_json()) == (200, before)
    assert sandbox.requests["mismatched"] == 0


def dataclass_with_price(product, price):
    return type(product)(**{**vars(product), "price": price})


@pytest.mark.parametrize(
    ("cart", "field"),
    [
        ([], "items"),
        ({"items": [{"product": "gold-bar", "quantity": 1}]}, "items[0].product"),
        ({"items": [{"product": "morning-mug", "quantity": True}]}, "items[0].quantity"),
        ({"items": [{"product": "morning-mug", "quantity": 1, "amount": 1}]}, "items[0].amount"),
        ({**CART, "return_url": "http://evil.example/"}, "return_url"),
    ],
)
def test_a_refusal_names_the_field_and_writes_nothing(browser, shop, sandbox, cart, field):
    answer = buy(browser, cart=cart)
    assert (answer.status_code, answer.mimetype) == (400, "application/problem+json")
    assert answer.get_json()["field"] == field
    assert (orders_in(shop), sandbox.sessions) == (0, [])


def test_without_a_key_nothing_is_bought(browser, shop, sandbox):
    answer = buy(browser, key=None)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "key-missing")
    assert (orders_in(shop), sandbox.sessions) == (0, [])


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_what_is_not_json_buys_nothing(browser, shop, kind):
    answer = browser.post("/checkout", data="items", content_type=kind, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 400
    assert orders_in(shop) == 0


def test_a_return_url_of_the_shop_is_where_a_cancelled_payment_leads(browser, sandbox):
    url = "http://localhost/?from=basket"
    assert buy(browser, cart={**CART, "return_url": url}).status_code == 200
    assert sandbox.sessions[0]["cancel_url"] == url


@pytest.mark.parametrize(
    ("end", "word"), [("pay", "paid"), ("expire", "expired"), ("transfer", "under way"), ("bounce", "failed")]
)
@pytest.mark.parametrize("heard", [True, False])
def test_a_key_whose_order_is_over_buys_nothing_more(browser, shop, sandbox, open_shop, wait_until, end, word, heard):
    """Whether or not its event has arrived: a checkout moves no order, but it asks."""
    session_id = buy(browser).get_json()["id"]
    if not heard:
        shop.config["STRIPE_WEBHOOK_SECRET"] = "whsec_other"
    if end == "bounce":
        sandbox.transfer(session_id)
        sandbox.settle(session_id, arrived=False)
    else:
        getattr(sandbox, end)(session_id)
    if heard:
        wait_until(lambda: only_order(shop).status != "open")
    answer = buy(open_shop().test_client())  # its store has forgotten the outcome
    assert answer.status_code == 400
    assert word in answer.get_json()["detail"]
    assert "Press Buy again" in answer.get_json()["detail"]
    assert (only_order(shop).status == "open") is not heard
    assert len(sandbox.sessions) == 1


def test_while_stripe_cannot_be_asked_the_buyer_is_asked_for_patience(browser, shop, sandbox, open_shop):
    buy(browser)
    sandbox.stop()
    answer = buy(open_shop().test_client())
    assert (answer.status_code, answer.get_json()["retryable"]) == (503, True)
    assert only_order(shop).status == "open"


def test_an_order_is_not_resumed_once_stripe_has_forgotten_its_key(browser, shop, sandbox, open_shop):
    buy(browser)
    change(shop, created_at=only_order(shop).created_at - 23 * 3600 - 1)
    answer = buy(open_shop().test_client())
    assert (answer.status_code, len(sandbox.sessions)) == (400, 1)
    assert "too old" in answer.get_json()["detail"]
