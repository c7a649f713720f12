"""A purchase, and what the shop's database says about it."""

from __future__ import annotations

from sqlalchemy import func, select, update

from example_app.orders import Order, db

CART = {"items": [{"product": "morning-mug", "quantity": 2}]}


def buy(browser, key="key-1"):
    answer = browser.post("/checkout", json=CART, headers={"Idempotency-Key": key})
    assert answer.status_code == 200, answer.text
    return answer.get_json()["id"]


def rows(shop, table):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalar(select(func.count()).select_from(table))


def order_of(shop, session_id):
    with shop.app_context(), db.session.session_factory() as session:
        return session.scalars(select(Order).where(Order.session_id == session_id)).one()


def change(shop, table, **values):
    with shop.app_context(), db.session.session_factory.begin() as session:
        session.execute(update(table).values(**values))
