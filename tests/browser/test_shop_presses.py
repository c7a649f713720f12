"""Whatever the buyer presses, it is one order, one session, one charge; with JavaScript and without it."""

from __future__ import annotations

import pytest

from example_app.sandbox import Fault

from .buying import (
    MUG,
    await_payment_page,
    badge,
    buy_button,
    intents,
    keys_sent,
    message,
    pay,
    press_buy,
)
from .conftest import Truth

pytestmark = pytest.mark.browser


@pytest.fixture
def buyer(open_context, shop, scripted):
    """A page on the shop, with JavaScript and without it."""
    return open_context(shop.url, java_script_enabled=scripted).new_page()


def test_a_double_click_is_one_order_that_can_be_paid(buyer, truth):
    buyer.goto(MUG)
    buy_button(buyer).dblclick(no_wait_after=True)
    await_payment_page(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=0)
    buyer.get_by_role("button", name="Pay").dblclick(no_wait_after=True)
    buyer.wait_for_url("**/orders/*")
    badge(buyer).to_have_text("Paid")
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_a_double_click_on_a_slow_shop_is_one_order(buyer, sandbox, truth):
    sandbox.inject(Fault(delay=1))
    keys = keys_sent(buyer)
    buyer.goto(MUG)
    buy_button(buyer).dblclick(no_wait_after=True)
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_enter_held_down_is_one_order(buyer, sandbox, truth):
    sandbox.inject(Fault(delay=1))
    keys = keys_sent(buyer)
    buyer.goto(MUG)
    buyer.locator("#quantity").focus()
    for _ in range(20):  # every further "down" of a key that is down is a repetition
        buyer.keyboard.down("Enter")
    buyer.keyboard.up("Enter")
    await_payment_page(buyer)
    assert len(set(keys)) == 1
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


@pytest.mark.parametrize("memory", [True, False], ids=["page in memory", "page loaded anew"])
def test_going_back_from_the_payment_and_pressing_again_is_the_same_order(open_context, shop, truth, scripted, memory):
    buyer = open_context(shop.url, java_script_enabled=scripted, memory=memory).new_page()
    buyer.goto(MUG)
    buyer.evaluate("window.mark = true")
    press_buy(buyer)
    payment = await_payment_page(buyer)
    buyer.go_back(wait_until="commit")
    assert buyer.evaluate("window.mark === true") is memory
    press_buy(buyer)
    assert await_payment_page(buyer) == payment
    pay(buyer)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_going_back_after_the_payment_tells_that_it_is_paid(buyer, truth):
    buyer.goto(MUG)
    press_buy(buyer)
    payment = await_payment_page(buyer)
    pay(buyer)
    buyer.goto(payment)
    assert buyer.get_by_role("heading").first.inner_text() == "This is paid"
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_two_tabs_are_two_orders_and_each_is_paid_once(open_context, shop, truth, scripted):
    context = open_context(shop.url, java_script_enabled=scripted)
    tabs = [context.new_page(), context.new_page()]
    for tab in tabs:
        tab.goto(MUG)
    for tab in tabs:
        buy_button(tab).dblclick(no_wait_after=True)
    assert len({await_payment_page(tab) for tab in tabs}) == 2
    assert truth() == Truth(orders=2, sessions=2, charges=0)
    pay(tabs[0])
    assert truth() == Truth(orders=2, sessions=2, charges=1)


def test_a_refund_that_is_pressed_twice_goes_back_once(buyer, truth):
    buyer.goto(MUG)
    press_buy(buyer)
    await_payment_page(buyer)
    pay(buyer)
    buyer.get_by_role("button", name="Send it back").dblclick(no_wait_after=True)
    badge(buyer).to_have_text("Refunded")
    assert truth() == Truth(orders=1, sessions=1, charges=1, refunds=1)


# --- With JavaScript ----------------------------------------------------------------------------------------------


def test_clicks_past_the_disabled_button_are_one_request(page, truth):
    keys = keys_sent(page)
    page.goto(MUG)
    page.evaluate("for (let n = 0; n < 5; n++) document.getElementById('buy').requestSubmit()")
    await_payment_page(page)
    assert len(keys) == 1
    assert truth() == Truth(orders=1, sessions=1, charges=0)


def test_while_it_waits_the_page_says_so(page, sandbox):
    sandbox.inject(Fault(delay=3))
    page.goto(MUG)
    page.locator("#quantity").press("Enter", no_wait_after=True)
    message(page).to_contain_text("One moment, we are preparing your order")
    assert buy_button(page).get_attribute("aria-busy") == "true"
    assert buy_button(page).is_disabled()
    assert page.get_by_role("status").inner_text().startswith("One moment")
    await_payment_page(page)


def test_a_reload_while_waiting_goes_on_with_the_same_order(page, sandbox, truth, wait_until):
    sandbox.inject(Fault(delay=2))
    keys = keys_sent(page)
    page.goto(MUG)
    press_buy(page)
    wait_until(lambda: sandbox.faults_waiting == 0)
    page.reload()
    message(page).to_have_text("You sent this order, but its answer got lost. Press Buy: it stays the same order.")
    press_buy(page)
    await_payment_page(page)
    assert len(keys) == 2
    assert len(set(keys)) == 1
    pay(page)
    assert truth() == Truth(orders=1, sessions=1, charges=1)


def test_a_tab_that_was_duplicated_goes_on_with_the_same_order(page, sandbox, truth, wait_until):
    sandbox.inject(Fault(delay=2))
    page.goto(MUG)
    press_buy(page)
    wait_until(lambda: sandbox.faults_waiting == 0)
    with page.expect_popup() as opened:  # which gets a copy of the session storage, like a tab that is duplicated
        page.evaluate("void window.open(location.href)")
    message(opened.value).to_contain_text("its answer got lost")
    press_buy(opened.value)
    assert await_payment_page(opened.value) == await_payment_page(page)
    assert truth() == Truth(orders=1, sessions=1, charges=0)


def test_after_a_cancelled_payment_the_same_order_goes_on(page, truth):
    page.goto(MUG)
    press_buy(page)
    payment = await_payment_page(page)
    page.get_by_role("button", name="Cancel").click()
    message(page).to_contain_text("nothing was charged")
    assert page.locator("#quantity").input_value() == "2"
    press_buy(page)
    assert await_payment_page(page) == payment
    assert truth() == Truth(orders=1, sessions=1, charges=0)


def test_another_quantity_is_another_order_and_the_first_one_again_is_the_first(page, truth):
    payments = []
    for quantity, total in (("2", "€36.00"), ("3", "€54.00"), ("2", "€36.00")):
        page.goto(MUG)
        page.locator("#quantity").fill(quantity)
        assert buy_button(page).inner_text() == f"Buy · {total}"
        press_buy(page)
        payments.append(await_payment_page(page))
    assert payments[0] == payments[2] != payments[1]
    assert truth() == Truth(orders=2, sessions=2, charges=0)


def test_the_same_page_with_another_quantity_after_going_back_is_another_order(page, truth):
    page.goto(MUG)
    press_buy(page)
    first = await_payment_page(page)
    page.go_back(wait_until="commit")
    page.locator("#quantity").fill("3")
    press_buy(page)
    assert await_payment_page(page) != first
    assert truth() == Truth(orders=2, sessions=2, charges=0)


def test_once_it_is_paid_the_next_press_is_a_new_order(page, truth):
    page.goto(MUG)
    press_buy(page)
    first = await_payment_page(page)
    pay(page)
    page.wait_for_function("Object.values({...sessionStorage}).every((value) => JSON.parse(value).state === 'over')")
    page.goto(MUG)
    press_buy(page)
    assert await_payment_page(page) != first
    assert truth() == Truth(orders=2, sessions=2, charges=1)


def test_the_order_page_follows_a_payment_that_is_made_elsewhere(page, sandbox):
    page.goto(MUG)
    press_buy(page)
    await_payment_page(page)
    [session] = sandbox.sessions
    page.goto(session["success_url"])
    badge(page).to_have_text("Waiting for payment")
    sandbox.pay(session["id"])
    badge(page).to_have_text("Paid")
    assert page.locator("#payment").is_hidden()
    assert intents(page) == []


def test_an_order_page_leaves_the_intent_of_another_order_alone(page, sandbox):
    page.goto(MUG)
    press_buy(page)
    await_payment_page(page)
    [session] = sandbox.sessions
    sandbox.pay(session["id"])
    page.goto("/products/reading-lamp")
    press_buy(page)
    await_payment_page(page)
    page.goto(session["success_url"])
    badge(page).to_have_text("Paid")
    page.wait_for_function("Object.values({...sessionStorage}).some((value) => JSON.parse(value).state === 'over')")
    [left] = intents(page)
    assert sandbox.sessions[1]["id"] in left["location"]


# --- Without JavaScript -------------------------------------------------------------------------------------------


def test_without_javascript_a_changed_form_under_its_old_key_is_asked_about(open_context, shop, truth):
    buyer = open_context(shop.url, java_script_enabled=False).new_page()
    buyer.goto(MUG)
    press_buy(buyer)
    first = await_payment_page(buyer)
    buyer.go_back(wait_until="commit")
    buyer.locator("#quantity").fill("3")
    press_buy(buyer)
    buyer.get_by_role("heading", name="This is not what you ordered before").wait_for()
    assert truth() == Truth(orders=1, sessions=1, charges=0)
    buyer.get_by_role("button", name="Order this as well").click()
    assert await_payment_page(buyer) != first
    assert truth() == Truth(orders=2, sessions=2, charges=0)


def test_without_javascript_an_order_page_finds_out_by_itself_that_it_is_paid(open_context, shop, sandbox):
    buyer = open_context(shop.url, java_script_enabled=False).new_page()
    buyer.goto(MUG)
    press_buy(buyer)
    await_payment_page(buyer)
    [session] = sandbox.sessions
    buyer.goto(session["success_url"])
    badge(buyer).to_have_text("Waiting for payment")
    sandbox.pay(session["id"])
    badge(buyer).to_have_text("Paid")
