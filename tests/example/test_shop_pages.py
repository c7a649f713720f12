"""The shop's pages, and how an order becomes paid."""

from __future__ import annotations

import re

import pytest
from flask import Flask

from example_app.catalog import PRODUCTS
from example_app.orders import OrderLine, db
from example_app.sandbox import Fault


@pytest.fixture
def order(browser):
    """The path of an open order's page, and the id of its Checkout Session."""
    cart = {"items": [{"product": "reading-lamp", "quantity": 2}]}
    session_id = browser.post("/checkout", json=cart, headers={"Idempotency-Key": "k"}).get_json()["id"]
    return only_order_path(browser.application), session_id


def only_order_path(shop: Flask) -> str:
    with shop.app_context(), db.session.session_factory() as session:
        return f"/orders/{session.query(OrderLine).one().order_id}"


@pytest.fixture
def show(browser, wait_until):
    """The page of an order, once it says what it shall."""

    def show(path: str, status: str) -> str:
        wait_until(lambda: badge(browser.get(path).text) == status)
        return browser.get(path).text

    return show


def badge(page: str) -> str:
    found = re.search(r'class="badge (\w+)"', page)
    assert found
    return found[1]


def test_the_catalog_shows_every_product_with_its_price(browser):
    page = browser.get("/").text
    for product in PRODUCTS.values():
        assert product.name in page
        assert f"/products/{product.slug}" in page
    assert "€129.00" in page


@pytest.mark.parametrize("slug", PRODUCTS)
def test_every_product_has_a_page_with_a_picture_and_a_form(browser, slug):
    page = browser.get(f"/products/{slug}").text
    assert PRODUCTS[slug].name in page
    assert '<svg class="art"' in page
    assert re.search(r'<form [^>]*method="post" action="/buy"', page)
    assert f'name="product" value="{slug}"' in page
    assert 'name="idempotency_key"' in page


@pytest.mark.parametrize(
    ("query", "value"), [("", 1), ("?quantity=7", 7), ("?quantity=0", 1), ("?quantity=999", 20), ("?quantity=x", 1)]
)
def test_the_quantity_can_be_given_in_the_address(browser, query, value):
    assert f'value="{value}" required' in browser.get(f"/products/morning-mug{query}").text


def test_a_cancelled_payment_leads_to_a_word_about_it(browser):
    assert "nothing was charged" in browser.get("/products/morning-mug?checkout=cancelled").text


def test_an_open_order_links_to_its_payment(browser, order, sandbox):
    page = browser.get(order[0]).text
    assert badge(page) == "open"
    assert f'href="{sandbox.url}/pay/{order[1]}"' in page
    assert "€178.00" in page


def test_coming_back_from_the_payment_page_proves_nothing(browser, order):
    assert badge(browser.get(f"{order[0]}?session_id={order[1]}&paid=1").text) == "open"


def test_an_order_is_paid_when_stripe_says_so(order, sandbox, show):
    sandbox.pay(order[1])
    page = show(order[0], "paid")
    assert "data-final" in page
    assert f"/pay/{order[1]}" not in page


def test_the_page_can_follow_the_status(browser, order, sandbox, show):
    before = browser.get(f"{order[0]}.json").get_json()
    sandbox.pay(order[1])
    show(order[0], "paid")
    after = browser.get(f"{order[0]}.json").get_json()
    assert (before["status"], before["final"], before["session"]) == ("open", False, order[1])
    assert (before["shipped"], before["refundable"]) == (False, False)
    assert (after["status"], after["final"], after["payment_url"]) == ("paid", True, None)
    assert (after["shipped"], after["refundable"]) == (True, True)


def test_an_expired_session_expires_the_order(order, sandbox, show):
    sandbox.expire(order[1])
    assert "You can order again" in show(order[0], "expired")


def test_a_payment_of_another_amount_is_held(order, sandbox, shop, show, caplog):
    with shop.app_context(), db.session.session_factory.begin() as session:
        session.query(OrderLine).update({"unit_amount": 1})
    sandbox.pay(order[1])
    page = show(order[0], "held")
    assert "contact the shop" in page
    assert "another amount" in caplog.text


@pytest.mark.parametrize("path", ["", ".json"])
def test_neither_the_page_nor_its_polling_asks_stripe_or_moves_the_order(browser, order, sandbox, shop, path):
    """Whoever opens the success page has proven nothing: only Stripe's events move an order."""
    shop.config["STRIPE_WEBHOOK_SECRET"] = "whsec_other"  # so that no event arrives
    sandbox.inject(Fault(error=500, at="retrievals"))
    sandbox.pay(order[1])
    answer = browser.get(order[0] + path)
    assert answer.status_code == 200
    assert (badge(answer.text) if not path else answer.get_json()["status"]) == "open"
    assert sandbox.faults_waiting == 1, "nobody has asked"


@pytest.mark.parametrize("path", ["/nothing", "/products/gold-bar", "/orders/ord_nobody", "/orders/ord_nobody.json"])
def test_what_is_not_there_is_404_in_the_shops_style(browser, path):
    answer = browser.get(path)
    assert answer.status_code == 404
    assert "not on the shelf" in answer.text


def test_what_breaks_is_500_in_the_shops_style(open_shop):
    shop = open_shop(TESTING=False)

    @shop.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError("a secret")

    answer = shop.test_client().get("/broken")
    assert answer.status_code == 500
    assert "broke on our side" in answer.text
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/", "/products/morning-mug", "/nothing", "/health", "/static/shop.js"])
def test_every_answer_has_the_security_headers(browser, path):
    with browser.get(path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"


@pytest.mark.parametrize("path", ["/", "/products/wool-blanket", "/nothing"])
def test_pages_keep_to_the_policy(browser, path):
    page = browser.get(path).text
    assert "style=" not in page
    assert "<style" not in page
    assert not re.search(r"\son\w+=", page)
    assert re.findall(r"<script[^>]*>(?=\s*\S)(?!</script>)", page) == []
    assert not re.search(r'(?:src|href)="https?:', page)


def test_the_health_of_the_shop_is_told(browser):
    assert browser.get("/health").get_json()["status"] == "healthy"
