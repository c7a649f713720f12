"""What the shop takes for a request to buy, and what it refuses."""

from __future__ import annotations

import json

import pytest

from example_app.catalog import PRODUCTS, format_price
from example_app.purchase import read_cart
from flask_idempotent import CheckoutRefused

SHOP = "http://shop.example:5000/"


def line(product="morning-mug", quantity=1, **more):
    return {"product": product, "quantity": quantity, **more}


def refusal(payload):
    with pytest.raises(CheckoutRefused) as caught:
        read_cart(payload, SHOP)
    return caught.value


def test_a_cart_has_products_and_quantities_in_the_order_of_the_request():
    cart = read_cart({"items": [line("wool-blanket", 20), line("morning-mug", 1)]}, SHOP)
    assert [(product.slug, quantity) for product, quantity in cart.items] == [("wool-blanket", 20), ("morning-mug", 1)]
    assert cart.return_url is None


@pytest.mark.parametrize("payload", [[], "items", 1, 1.5, True, [line()]])
def test_something_else_than_an_object_is_refused(payload):
    assert "JSON object" in refusal(payload).detail


@pytest.mark.parametrize("items", [None, [], {}, "mug", 1, [line()] * 101])
def test_items_is_a_list_of_1_to_100_lines(items):
    assert refusal({"items": items}).field == "items"


def test_a_request_without_items_is_refused():
    assert refusal({}).field == "items"


@pytest.mark.parametrize("bad", [0, -1, 21, 10**9, 1.5, 1.0, True, False, "1", None, [1], {}, float("nan")])
def test_a_quantity_is_a_whole_number_from_1_to_20(bad):
    refused = refusal({"items": [line(), line("wool-blanket", bad)]})
    assert refused.field == "items[1].quantity"
    assert "from 1 to 20" in refused.detail


@pytest.mark.parametrize("bad", ["", "gold-bar", "MORNING-MUG", None, 1, True, ["morning-mug"], {}])
def test_a_product_is_one_that_the_shop_has(bad):
    assert refusal({"items": [line(bad)]}).field == "items[0].product"


@pytest.mark.parametrize("missing", ["product", "quantity"])
def test_a_line_needs_a_product_and_a_quantity(missing):
    incomplete = {name: value for name, value in line().items() if name != missing}
    assert refusal({"items": [incomplete]}).field == f"items[0].{missing}"


@pytest.mark.parametrize("bad", ["morning-mug", 1, None, ["morning-mug", 1]])
def test_a_line_is_an_object(bad):
    assert refusal({"items": [bad]}).field == "items[0]"


def test_the_same_product_twice_is_refused():
    refused = refusal({"items": [line(), line("wool-blanket"), line(quantity=3)]})
    assert refused.field == "items[2].product"
    assert "total quantity" in refused.detail


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"items": [line()], "amount": 1}, "amount"),
        ({"items": [line()], "currency": "usd"}, "currency"),
        ({"items": [line(amount=1)]}, "items[0].amount"),
        ({"items": [line(price=0)]}, "items[0].price"),
    ],
)
def test_a_field_that_the_shop_did_not_ask_for_is_refused_by_name(payload, field):
    assert refusal(payload).field == field


@pytest.mark.parametrize(
    "url", [SHOP, f"{SHOP}products/morning-mug", f"{SHOP}a?b=c#d", "http://shop.example:5000", f"{SHOP}%5C@x"]
)
def test_a_return_url_may_lead_to_any_page_of_the_shop(url):
    assert read_cart({"items": [line()], "return_url": url}, SHOP).return_url == url


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example:5000/",
        "http://shop.example/",
        "http://shop.example:5001/",
        "http://shop.example:5000.evil.example/",
        "http://shop.example:5000@evil.example/",
        "http://user@shop.example:5000/",
        "http://SHOP.example:5000/",
        "http://evil.example/?http://shop.example:5000/",
        "http://shop.example:5000\\@evil.example/",
        "http://shop.example:5000/\n",
        "ht\ttp://shop.example:5000/",
        " http://shop.example:5000/",
        "//shop.example:5000/",
        "/products/morning-mug",
        "javascript:alert(1)",
        "http://[shop.example:5000/",
        "http://shop.example:5000/ü",
        f"{SHOP}{'x' * 2000}",
        "",
        None,
        1,
        [SHOP],
    ],
)
def test_a_return_url_that_leads_elsewhere_is_refused(url):
    assert refusal({"items": [line()], "return_url": url}).field == "return_url"


def test_every_refusal_names_a_field_and_says_what_to_do():
    for payload in ([], {}, {"items": [1]}, {"items": [line("x")]}, {"items": [line(quantity=0)]}, {"x": 1}):
        refused = refusal(payload)
        assert refused.field
        assert any(word in refused.detail for word in ("Send", "takes", "Choose", "Leave"))
        json.dumps(refused.members())


def test_a_long_unknown_name_is_not_given_back_whole():
    assert len(refusal({"x" * 10_000: 1}).field) <= 200


def test_the_catalog_is_one_that_stripe_can_take():
    assert 4 <= len(PRODUCTS) <= 6
    for slug, product in PRODUCTS.items():
        assert slug == product.slug
        assert type(product.price) is int
        assert product.price >= 50
        assert product.tagline


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [(1800, "eur", "€18.00"), (5, "eur", "€0.05"), (1234567, "eur", "€12,345.67"), (1800, "usd", "18.00 USD")],
)
def test_prices_are_written_for_the_eye(amount, currency, text):
    assert format_price(amount, currency) == text
