"""Orders in the database: written once, moved once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import func, select

from example_app import orders
from example_app.orders import MOVES, Item, Order, OrderLine, Status, db

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


@pytest.mark.parametrize("target", [Status.PAID, Status.EXPIRED, Status.FAILED])
def test_an_open_order_ends_once(target):
    order = opened()
    assert orders.move(order, target)
    assert not orders.move(order, target)
    assert orders.find("ord_1").state is target


@pytest.mark.parametrize("end", [Status.PAID, Status.EXPIRED, Status.FAILED])
def test_nothing_leads_away_from_the_end(end):
    orders.move(opened(), end)
    ended = orders.find("ord_1")
    assert ended.state.final
    assert not orders.attach_session("ord_1", "cs_2", "http://pay/")
    for target in Status:
        with pytest.raises(ValueError, match="cannot go"):
            orders.move(ended, target)
    assert orders.find("ord_1").session_id == "cs_1"


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
            return orders.move(order, Status.PAID if number % 2 else Status.EXPIRED)

    with ThreadPoolExecutor(20) as pool:
        assert sum(pool.map(attempt, range(20))) == 1


def test_the_table_of_moves_reaches_every_status():
    assert set().union(*MOVES.values()) | {Status.CREATED} == set(Status)


def test_tables_may_be_created_by_several_workers_at_once(open_shop, tmp_path):
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    with ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(lambda _: open_shop(SQLALCHEMY_DATABASE_URI=uri), range(8)))) == 8
