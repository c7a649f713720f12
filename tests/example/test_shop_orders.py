"""Orders in the database: written once, moved once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from example_app import orders
from example_app.orders import MOVES, Item, Order, OrderLine, Refund, Shipment, Status, db

ITEM = Item("morning-mug", "Morning mug", "Stoneware", 1800, 2)


@pytest.fixture(autouse=True)
def _context(shop):
    with shop.app_context():
        yield


def write(order_id="ord_1", items=(ITEM,), **change):
    values = {"currency": "eur", "success_url": "http://s/", "cancel_url": "http://c/", "now": 1000.9, **change}
    return orders.insert_or_get(order_id, items, **values)


def opened(session_id="cs_1"):
    write()
    assert orders.attach_session("ord_1", session_id, "http://pay/")
    return orders.find("ord_1")


def rows(table):
    with db.session.session_factory() as session:
        return session.scalar(select(func.count()).select_from(table))


def test_an_order_is_written_with_its_lines():
    write(items=[ITEM, replace(ITEM, product="wool-blanket", unit_amount=12900, quantity=1)])
    order = orders.find("ord_1")
    assert [(line.product, line.quantity, line.amount) for line in order.lines] == [
        ("morning-mug", 2, 3600),
        ("wool-blanket", 1, 12900),
    ]
    assert (order.amount, order.state, order.created_at) == (16500, Status.CREATED, 1000)
    assert (order.session_id, order.session_url) == (None, None)


def test_an_unknown_order_is_none():
    assert orders.find("ord_nobody") is None


def test_the_same_id_again_returns_the_order_as_it_was_written():
    write()
    again = write(items=[replace(ITEM, unit_amount=1)], success_url="http://other/", now=2000)
    assert (again.amount, again.success_url, again.created_at) == (3600, "http://s/", 1000)
    assert (rows(Order), rows(OrderLine)) == (1, 1)


def test_an_order_can_be_used_after_its_transaction_without_the_database(shop):
    order = write()
    found = orders.find("ord_1")
    db.engine.dispose()
    assert order.amount == found.amount == 3600


def test_twenty_writers_of_one_id_write_one_order(shop):
    start = threading.Barrier(20)

    def attempt(_):
        with shop.app_context():
            start.wait(10)
            return write().amount

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(attempt, range(20))) == {3600}
    assert (rows(Order), rows(OrderLine)) == (1, 1)


def test_what_the_database_refuses_for_another_reason_is_not_hidden():
    with pytest.raises(Exception, match="CHECK constraint"):
        write(items=[replace(ITEM, quantity=0)])
    assert rows(Order) == 0


def test_a_session_opens_an_order_and_may_be_noted_again():
    order = opened()
    assert (order.state, order.session_id, order.session_url) == (Status.OPEN, "cs_1", "http://pay/")
    assert orders.attach_session("ord_1", "cs_1", "http://pay/")
    assert orders.attach_session("ord_1", "cs_2", "http://pay/2")
    assert orders.find("ord_1").session_id == "cs_2"


def test_a_session_of_an_unknown_order_is_ignored():
    assert not orders.attach_session("ord_nobody", "cs_1", None)


ENDS = [Status.PAID, Status.EXPIRED, Status.FAILED, Status.HELD, Status.REFUNDED]


@pytest.mark.parametrize("target", ENDS)
def test_an_open_order_ends_once(target):
    order = opened()
    assert orders.move(order, target)
    assert not orders.move(order, target)
    assert orders.find("ord_1").state is target


@pytest.mark.parametrize("end", ENDS)
def test_whatever_the_table_does_not_have_is_refused(end):
    orders.move(opened(), end)
    ended = orders.find("ord_1")
    assert ended.state.final
    assert not orders.attach_session("ord_1", "cs_2", "http://pay/")
    for target in set(Status) - MOVES.get(end, frozenset()):
        with pytest.raises(ValueError, match="cannot go"):
            orders.move(ended, target)
    assert (orders.find("ord_1").session_id, orders.find("ord_1").state) == ("cs_1", end)


def test_the_move_to_paid_ships_the_order_and_notes_what_paid_it():
    assert orders.move(opened(), Status.PAID, payment_intent="pi_1")
    order = orders.find("ord_1")
    assert (order.payment.payment_intent, order.shipment is not None) == ("pi_1", True)
    assert orders.find_by_payment("pi_1").id == "ord_1"
    assert orders.find_by_payment("pi_2") is None


def test_a_payment_that_took_days_ships_when_it_arrives():
    orders.move(opened(), Status.PROCESSING)
    order = orders.find("ord_1")
    assert (order.shipment, order.state.final) == (None, False)
    assert orders.move(order, Status.PAID, payment_intent="pi_1")
    assert orders.find("ord_1").shipment is not None


@pytest.mark.parametrize("target", [Status.HELD, Status.REFUNDED, Status.FAILED, Status.EXPIRED, Status.PROCESSING])
def test_no_other_move_ships(target):
    orders.move(opened(), target, payment_intent="pi_1")
    assert rows(Shipment) == 0


def test_a_move_whose_effect_cannot_be_written_does_not_happen():
    """Both are one transaction."""
    orders.move(opened(), Status.PAID, payment_intent="pi_1")
    write("ord_2")
    orders.attach_session("ord_2", "cs_2", "http://pay/2")
    with pytest.raises(IntegrityError):
        orders.move(orders.find("ord_2"), Status.PAID, payment_intent="pi_1")
    assert orders.find("ord_2").state is Status.OPEN
    assert rows(Shipment) == 1


def test_a_refund_leaves_its_key_with_the_order_and_the_first_key_counts():
    orders.move(opened(), Status.PAID, payment_intent="pi_1")
    paid = orders.find("ord_1")
    assert orders.begin_refund(paid, "key-1")
    assert not orders.begin_refund(paid, "key-2")
    order = orders.find("ord_1")
    assert (order.state, order.refund.stripe_key) == (Status.REFUNDING, "key-1")
    assert orders.move(order, Status.REFUNDED)
    assert not orders.begin_refund(paid, "key-3")


def test_a_refund_that_is_not_to_be_leaves_the_order_paid_and_ships_nothing_more():
    orders.move(opened(), Status.PAID, payment_intent="pi_1")
    orders.begin_refund(orders.find("ord_1"), "key-1")
    assert orders.move(orders.find("ord_1"), Status.PAID)
    order = orders.find("ord_1")
    assert (order.state, order.refund, rows(Shipment)) == (Status.PAID, None, 1)
    assert orders.begin_refund(order, "key-2")
    assert orders.find("ord_1").refund.stripe_key == "key-2"


@pytest.mark.parametrize("status", [Status.OPEN, Status.PROCESSING, Status.HELD, Status.EXPIRED])
def test_what_is_not_paid_is_not_refunded(status):
    order = opened()
    if status is not Status.OPEN:
        orders.move(order, status)
    assert not orders.begin_refund(orders.find("ord_1"), "key-1")
    assert rows(Refund) == 0


def test_a_judgement_of_an_earlier_session_does_not_move_the_order():
    stale = opened()
    orders.attach_session("ord_1", "cs_2", "http://pay/2")
    assert not orders.move(stale, Status.EXPIRED)
    assert orders.find("ord_1").state is Status.OPEN


def test_an_order_without_a_session_cannot_be_paid():
    with pytest.raises(ValueError, match="from created to paid"):
        orders.move(write(), Status.PAID)


def test_of_twenty_who_move_an_order_one_did_it(shop):
    order = opened()
    start = threading.Barrier(20)

    def attempt(number):
        with shop.app_context():
            start.wait(10)
            return orders.move(order, Status.PAID if number % 2 else Status.EXPIRED, payment_intent="pi_1")

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(attempt, range(20))) == 1
    assert rows(Shipment) == (orders.find("ord_1").state is Status.PAID)


def test_the_table_of_moves_reaches_every_status():
    assert set().union(*MOVES.values()) | {Status.CREATED} == set(Status)


def test_tables_may_be_created_by_several_workers_at_once(open_shop, tmp_path):
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: open_shop(SQLALCHEMY_DATABASE_URI=uri), range(8)))) == 8
