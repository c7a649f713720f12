"""The shop in a real Chromium: whatever buyer and network do, it is one order, and the page says what is true."""

from __future__ import annotations

import json
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright
from sqlalchemy import func, select

from example_app.orders import Order, db
from example_app.sandbox import Fault
from example_app.serving import Server

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MUG = "/products/morning-mug?quantity=2"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium():
    assert CHROMIUM, "chromium is missing: run `make test`, which installs it"
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def address(shop):
    with Server() as server:
        server.start(shop)
        yield server.url


@pytest.fixture
def page(chromium, address):
    context = chromium.new_context(base_url=address)
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    yield page
    context.close()
    assert complaints == []


def orders_in(shop):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalar(select(func.count()).select_from(Order))


def intents(page):
    return page.evaluate("Object.entries(sessionStorage).map(([name, value]) => [name, JSON.parse(value)])")


def message(page):
    return expect(page.locator("#message"))


def buy_button(page):
    return page.get_by_role("button", name="Buy")


def test_a_double_click_is_one_order_that_can_be_paid(page, shop, sandbox):
    page.goto(MUG)
    buy_button(page).dblclick()
    page.wait_for_url("**/pay/*")
    page.get_by_role("button", name="Pay").dblclick()
    page.wait_for_url("**/orders/*")
    expect(page.locator("#badge")).to_have_text("Paid")
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)
    expect(page.locator("#order[data-final]")).to_be_visible()
    assert intents(page) == []  # so that the next press of Buy is a new order


def test_clicks_past_the_disabled_button_are_one_order(page, shop, sandbox):
    page.goto(MUG)
    page.evaluate(
        """() => { const form = document.getElementById("buy");
                   for (let n = 0; n < 5; n++) form.dispatchEvent(new SubmitEvent("submit", {cancelable: true})); }"""
    )
    page.wait_for_url("**/pay/*")
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_a_connection_that_breaks_after_the_order_was_made_is_one_order(page, shop, sandbox):
    broken = []

    def cut(route):
        if broken:
            route.continue_()
        else:
            broken.append(route.fetch().status)
            route.abort("connectionreset")

    page.route("**/checkout", cut)
    page.goto(MUG)
    buy_button(page).click()
    message(page).to_contain_text("The connection was lost. Trying again in 1 s (2 of 8)")
    page.wait_for_url("**/pay/*")
    assert broken == [200]
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_a_reload_while_waiting_and_another_press_are_one_order(page, shop, sandbox, wait_until):
    sandbox.inject(Fault(delay=1))
    page.goto(MUG)
    buy_button(page).click()
    wait_until(lambda: sandbox.faults_waiting == 0)
    page.reload()
    buy_button(page).click()
    message(page).to_contain_text("Your order is being processed")
    page.wait_for_url("**/pay/*")
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_after_a_cancelled_payment_the_same_order_goes_on(page, shop, sandbox):
    page.goto(MUG)
    buy_button(page).click()
    page.wait_for_url("**/pay/*")
    payment = page.url
    page.get_by_role("button", name="Cancel").click()
    message(page).to_contain_text("nothing was charged")
    assert page.locator("#quantity").input_value() == "2"
    buy_button(page).click()
    page.wait_for_url(payment)
    assert (orders_in(shop), len(sandbox.sessions)) == (1, 1)


def test_another_quantity_is_another_order(page, shop):
    for quantity in ("2", "3"):
        page.goto(MUG)
        page.locator("#quantity").fill(quantity)
        expect(buy_button(page)).to_contain_text({"2": "€36.00", "3": "€54.00"}[quantity])
        buy_button(page).click()
        page.wait_for_url("**/pay/*")
    assert orders_in(shop) == 2


def test_a_shop_that_asks_for_patience_gets_it_under_the_same_key(page, shop):
    keys = []

    def busy(route):
        keys.append(route.request.headers["idempotency-key"])
        if len(keys) > 1:
            return route.continue_()
        return route.fulfill(status=503, headers={"Retry-After": "1"}, json={"retryable": True})

    page.route("**/checkout", busy)
    page.goto(MUG)
    buy_button(page).click()
    message(page).to_contain_text("The shop is busy")
    expect(buy_button(page)).to_be_disabled()
    page.wait_for_url("**/pay/*")
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert orders_in(shop) == 1


@pytest.mark.parametrize(
    ("status", "detail", "shown", "kept"),
    [
        (400, "Only 20 pieces, please.", "Only 20 pieces, please.", False),
        (422, "Already used.", "Already used.", False),
        (500, "boom", "stays the same order", True),
        (409, "unknown", "stays the same order", True),
    ],
)
def test_an_answer_that_is_final_is_shown_and_not_repeated(page, status, detail, shown, kept):
    asked = []

    def answer(route):
        asked.append(route.request.post_data_json)
        route.fulfill(status=status, body=json.dumps({"detail": detail, "retryable": False}))

    page.route("**/checkout", answer)
    page.goto(MUG)
    buy_button(page).click()
    message(page).to_contain_text(shown)
    expect(buy_button(page)).to_be_enabled()
    assert asked == [{"items": [{"product": "morning-mug", "quantity": 2}]}]
    assert bool(intents(page)) is kept


def test_the_order_page_follows_a_payment_that_is_made_elsewhere(page, sandbox):
    page.goto(MUG)
    buy_button(page).click()
    page.wait_for_url("**/pay/*")
    [session] = sandbox.sessions
    page.goto(session["success_url"])
    expect(page.locator("#badge")).to_have_text("Waiting for payment")
    sandbox.pay(session["id"])
    expect(page.locator("#badge")).to_have_text("Paid")
    expect(page.locator("#payment")).to_be_hidden()
    assert intents(page) == []


def test_an_order_page_leaves_the_intent_of_another_order_alone(page, sandbox):
    page.goto(MUG)
    buy_button(page).click()
    page.wait_for_url("**/pay/*")
    [session] = sandbox.sessions
    sandbox.pay(session["id"])
    page.goto("/")
    newer = {"key": "newer", "session": "cs_newer"}
    page.evaluate("(newer) => sessionStorage.setItem('intent:morning-mug:2', JSON.stringify(newer))", newer)
    page.goto(session["success_url"])
    expect(page.locator("#badge")).to_have_text("Paid")
    assert intents(page) == [["intent:morning-mug:2", newer]]
