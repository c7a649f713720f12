"""Whatever network, server and store do in the middle of a purchase, it is one order, one session, one charge, and the
page says what is true; with JavaScript and without it."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Error, expect

from example_app.sandbox import Fault
from tests.servers.link import Link

from .buying import (
    MUG,
    await_message,
    await_payment_page,
    badge,
    buy_button,
    intents,
    keys_sent,
    message,
    messages,
    pay,
    press_buy,
)
from .conftest import Truth

pytestmark = pytest.mark.browser

LEASE = 2  # seconds for which a killed worker blocks its key


@pytest.fixture
def link(shop):
    """The network between the buyer and the shop."""
    link = Link(shop.port)
    yield link
    link.close()


def url_of(link):
    return f"http://127.0.0.1:{link.port}"


def visit(page):
    """Open the page of a product, with all that belongs to it: what breaks later is nothing but the purchase."""
    page.goto(MUG, wait_until="networkidle")


def after_a_broken_connection(page, instead_of="**/pay/*"):
    """What a buyer without JavaScript does: the browser shows its own error page, and one goes back."""
    with pytest.raises(Error, match="net::ERR_"):
        page.wait_for_url(instead_of)
    page.wait_for_url("chrome-error://**")
    page.go_back(wait_until="commit")
    expect(buy_button(page)).to_be_enabled()


# --- The connection -----------------------------------------------------------------------------------------------


def test_an_answer_that_is_lost_on_the_way_is_one_order(open_context, link, scripted, truth):
    buyer = open_context(url_of(link), java_script_enabled=scripted).new_page()
    keys, said = keys_sent(buyer), messages(buyer) if scripted else []
    visit(buyer)
    link.lose_replies_to(b"POST /buy")
    press_buy(buyer)
    if scripted:
        lost = "The connection was lost. Trying again in 1 s (2 of 10); you will not be charged twice."
        await_message(buyer, said, lost)
        link.open()
    else:
        after_a_broken_connection(buyer)
        link.open()
        press_buy(buyer)
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    assert truth() == Truth(orders=1, sessions=1, charges=0)
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_a_connection_that_breaks_while_the_shop_works_is_one_order(
    open_context, link, scripted, sandbox, truth, wait_until
):
    buyer = open_context(url_of(link), java_script_enabled=scripted).new_page()
    keys = keys_sent(buyer)
    visit(buyer)
    sandbox.inject(Fault(delay=3))
    press_buy(buyer)
    wait_until(lambda: sandbox.faults_waiting == 0)
    link.cut()
    if scripted:
        message(buyer).to_contain_text("The connection was lost")
        link.open()
    else:
        after_a_broken_connection(buyer)
        link.open()
        press_buy(buyer)
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_a_shop_that_cannot_be_reached_is_waited_for(open_context, link, truth):
    buyer = open_context(url_of(link)).new_page()
    said = messages(buyer)
    visit(buyer)
    link.cut()
    press_buy(buyer)
    await_message(buyer, said, "(3 of 10)")
    expect(buy_button(buyer)).to_be_disabled()
    assert truth() == Truth(orders=0, sessions=0, charges=0)
    link.open()
    await_payment_page(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=0)


def test_when_the_tries_are_used_up_the_next_press_is_the_same_order(open_context, link, truth):
    buyer = open_context(url_of(link)).new_page()
    keys = keys_sent(buyer)
    visit(buyer)
    buyer.evaluate("Object.assign(Idempotent.options, {tries: 2, backoff: 1})")
    link.lose_replies_to(b"POST /buy")
    press_buy(buyer)
    message(buyer).to_have_text("We could not finish this right now. Press Buy to try again: it stays the same order.")
    expect(buy_button(buyer)).to_be_enabled()
    assert buy_button(buyer).get_attribute("aria-busy") is None
    link.open()
    press_buy(buyer)
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    assert truth() == Truth(orders=1, sessions=1, charges=0)


def test_a_payment_whose_answer_is_lost_is_found_by_pressing_buy_again(open_context, shop, scripted, truth):
    buyer = open_context(shop.url, java_script_enabled=scripted).new_page()
    visit(buyer)
    press_buy(buyer)
    payment = await_payment_page(buyer)
    buyer.get_by_role("button", name="the answer gets lost").click(no_wait_after=True)
    after_a_broken_connection(buyer, instead_of="**/orders/*")
    assert truth() == Truth(orders=1, sessions=1, charges=1)
    press_buy(buyer)
    assert await_payment_page(buyer) == payment
    expect(buyer.get_by_role("heading").first).to_have_text("This is paid")
    buyer.get_by_role("link", name="Back to the shop").click()
    badge(buyer).to_have_text("Paid")
    assert truth() == Truth(orders=1, sessions=1, charges=1)


# --- The server ---------------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_a_server_that_is_killed_in_the_middle_and_started_anew_is_one_order(
    open_context, shop_process, redis_server, scripted, sandbox, truth, wait_until
):
    shop = shop_process(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url, IDEMPOTENCY_LEASE=LEASE)
    buyer = open_context(shop.url, java_script_enabled=scripted).new_page()
    keys = keys_sent(buyer)
    visit(buyer)
    sandbox.inject(Fault(delay=3))
    press_buy(buyer)
    wait_until(lambda: sandbox.faults_waiting == 0)
    shop.kill()
    assert truth().orders == 1
    if scripted:
        message(buyer).to_contain_text("The connection was lost")
        shop.start()
    else:
        after_a_broken_connection(buyer)
        shop.start()
        time.sleep(LEASE)  # for which the dead worker has the key; before, the page would ask for patience
        press_buy(buyer)
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


@pytest.mark.redis
def test_a_server_that_is_killed_for_good_leaves_a_page_that_says_where_things_stand(
    open_context, shop_process, redis_server, sandbox, truth, wait_until
):
    shop = shop_process(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url, IDEMPOTENCY_LEASE=LEASE)
    buyer = open_context(shop.url).new_page()
    visit(buyer)
    buyer.evaluate("Object.assign(Idempotent.options, {tries: 2, backoff: 1})")
    sandbox.inject(Fault(delay=3))
    press_buy(buyer)
    wait_until(lambda: sandbox.faults_waiting == 0)
    shop.kill()
    message(buyer).to_contain_text("Press Buy to try again: it stays the same order.")
    shop.start()
    buyer.reload()
    message(buyer).to_contain_text("its answer got lost")
    press_buy(buyer)
    await_payment_page(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=0)


# --- The store ----------------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_redis_lost_in_the_middle_is_one_order(
    open_context, open_shop, new_redis, scripted, sandbox, truth, wait_until
):
    redis = new_redis().start()
    shop = open_shop(IDEMPOTENCY_CACHE_REDIS_URL=redis.url)
    buyer = open_context(shop.url, java_script_enabled=scripted).new_page()
    keys = keys_sent(buyer)
    visit(buyer)
    sandbox.inject(Fault(delay=3))
    press_buy(buyer)
    wait_until(lambda: sandbox.faults_waiting == 0)
    redis.stop()
    payment = await_payment_page(buyer)
    buyer.go_back(wait_until="commit")  # and once more, with Redis still away
    press_buy(buyer)
    assert await_payment_page(buyer) == payment
    assert len(set(keys)) == 1
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


@pytest.mark.redis
def test_where_nothing_runs_without_redis_the_page_says_so_and_the_order_is_made_when_it_is_back(
    open_context, open_shop, new_redis, scripted, truth, wait_until
):
    redis = new_redis().start()
    shop = open_shop(IDEMPOTENCY_CACHE_REDIS_URL=redis.url, IDEMPOTENCY_ON_OUTAGE="reject")
    buyer = open_context(shop.url, java_script_enabled=scripted).new_page()
    visit(buyer)
    redis.stop()
    press_buy(buyer)
    if scripted:
        message(buyer).to_contain_text("The shop is busy. Trying again in")
    else:
        expect(buyer.get_by_role("heading").first).to_have_text("We could not finish this right now")
        expect(buyer.locator("main")).to_contain_text("Nothing was charged")
    assert truth() == Truth(orders=0, sessions=0, charges=0)
    redis.start()
    deadline = time.monotonic() + 20
    while not scripted and "/pay/" not in buyer.url:  # the buyer presses until it works
        assert time.monotonic() < deadline
        buyer.get_by_role("button", name="Try again").click()
    await_payment_page(buyer)
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


# --- What the shop answers ----------------------------------------------------------------------------------------


def test_a_shop_that_asks_for_patience_gets_it_under_the_same_key(page, truth):
    keys, said = keys_sent(page), messages(page)

    def busy(route):
        if len(keys) > 1:
            return route.continue_()
        return route.fulfill(status=503, headers={"Retry-After": "2"}, json={"retryable": True})

    page.route("**/buy", busy)
    visit(page)
    press_buy(page)
    await_message(page, said, "The shop is busy. Trying again in 2 s (2 of 10)")
    await_payment_page(page)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert truth() == Truth(orders=1, sessions=1, charges=0)


@pytest.mark.parametrize(
    ("status", "retryable", "shown", "kept"),
    [
        (400, False, "Only 20 pieces, please.", False),
        (402, False, "Only 20 pieces, please.", False),
        (422, False, "Only 20 pieces, please.", False),
        (429, True, "it stays the same order", True),
        (500, False, "it stays the same order", True),
        (409, False, "it stays the same order", True),
    ],
)
def test_an_answer_that_is_final_is_shown_and_not_repeated(page, status, retryable, shown, kept):
    keys = keys_sent(page)
    answer = {"detail": "Only 20 pieces, please.", "retryable": retryable}
    page.route(
        "**/buy", lambda route: route.fulfill(status=status, json=answer, content_type="application/problem+json")
    )
    visit(page)
    press_buy(page)
    message(page).to_contain_text(shown)
    expect(buy_button(page)).to_be_enabled()
    assert len(keys) == 1
    assert bool(intents(page)) is kept
    press_buy(page)
    expect(buy_button(page)).to_be_enabled()
    assert len(keys) == 2
    assert (len(set(keys)) == 1) is kept


def test_an_order_that_is_over_says_so_and_the_next_press_is_a_new_one(open_context, open_shop, sandbox, truth):
    buyer = open_context("http://127.0.0.1").new_page()
    shop = open_shop(IDEMPOTENCY_TTL=0.05)  # so that the shop itself judges the order again, not its stored answer
    buyer.goto(shop.url + MUG)
    press_buy(buyer)
    await_payment_page(buyer)
    sandbox.pay(sandbox.sessions[0]["id"])
    buyer.go_back(wait_until="commit")
    press_buy(buyer)
    message(buyer).to_have_text("You have paid for this order already. Press Buy again only if you want another one.")
    assert truth() == Truth(orders=1, sessions=1, charges=1)
    press_buy(buyer)
    await_payment_page(buyer)
    assert truth() == Truth(orders=2, sessions=2, charges=1)


def test_without_javascript_a_refusal_is_a_page_of_the_shop(open_context, shop, truth):
    buyer = open_context(shop.url, java_script_enabled=False).new_page()
    visit(buyer)
    buyer.locator("#quantity").evaluate("(field) => { field.type = 'text'; field.value = '1000'; }")
    press_buy(buyer)
    expect(buyer.get_by_role("heading").first).to_have_text("This order did not go through")
    expect(buyer.locator("main")).to_contain_text("a whole number from 1 to 20")
    assert truth() == Truth(orders=0, sessions=0, charges=0)
