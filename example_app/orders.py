"""Orders in the database, in short transactions: none is open while Stripe is asked.

| from | to | when |
| --- | --- | --- |
| created | open | Stripe has a Checkout Session for it |
| open | open | Stripe has a later session for it, because the outcome of an earlier one stayed unknown |
| open | processing | the buyer has paid by a method that takes days |
| open, processing | paid | Stripe says paid, and amount and currency are the order's: the order is shipped, in one go |
| open, processing | held | Stripe says paid, but another amount or currency: somebody has to look |
| open, processing | failed | the money did not arrive |
| open | expired | the session ended without a payment |
| paid | refunding | the buyer wants the money back, and Stripe is being asked |
| refunding | paid | Stripe will not do it |
| paid, refunding, held | refunded | Stripe says that all of it went back |
| open, processing | refunded | the same, before we had heard of the payment: nothing is shipped |

A move is a conditional UPDATE that names the state it starts from; who finds no row there lost the race and
changes nothing. What belongs to a move is written in its transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Update, delete, select, update
from sqlalchemy.exc import IntegrityError

from .tables import MOVES, UNPAID, Order, OrderLine, Payment, Refund, Shipment, Status, create_tables, db

if TYPE_CHECKING:
    from sqlalchemy import CursorResult
    from sqlalchemy.orm import Session

__all__ = [
    "MOVES",
    "Item",
    "Order",
    "OrderLine",
    "Payment",
    "Refund",
    "Shipment",
    "Status",
    "attach_session",
    "begin_refund",
    "create_tables",
    "db",
    "find",
    "find_by_payment",
    "insert_or_get",
    "move",
]


@dataclass(frozen=True)
class Item:
    """So many pieces of something at a price in minor units, as they were when the order was made."""

    product: str
    name: str
    description: str
    unit_amount: int
    quantity: int


def find(order_id: str) -> Order | None:
    """Return the order with its lines, or None."""
    with db.session.session_factory() as session:
        return session.get(Order, order_id)


def find_by_payment(payment_intent: str) -> Order | None:
    """Return the order that was paid by a PaymentIntent, or None."""
    with db.session.session_factory() as session:
        return session.scalar(select(Order).join(Payment).where(Payment.payment_intent == payment_intent))


def insert_or_get(
    order_id: str, items: Iterable[Item], *, currency: str, success_url: str, cancel_url: str, now: float
) -> Order:
    """Write a new order and commit it, or return the one that has this id already, as it was written then.

    :param order_id: the same for every retry of one request, and for no other.
    :param items: what is bought.
    :param currency: the ISO 4217 code of every price, in lower case.
    :param success_url: where the buyer goes after paying.
    :param cancel_url: where the buyer goes instead.
    :param now: the time in seconds since the epoch.
    """
    known = find(order_id)
    if known is not None:
        return known
    order = Order(
        id=order_id,
        status=Status.CREATED.value,
        currency=currency,
        success_url=success_url,
        cancel_url=cancel_url,
        created_at=int(now),
        lines=[OrderLine(position=position, **vars(item)) for position, item in enumerate(items)],
    )
    try:
        with db.session.session_factory.begin() as session:
            session.add(order)
    except IntegrityError:
        known = find(order_id)
        if known is None:  # so it was not the id that is taken
            raise
        return known
    return order


def attach_session(order_id: str, session_id: str, session_url: str | None) -> bool:
    """Note the Checkout Session of an order that is not paid yet; returns whether there was such an order."""
    going = [status.value for status, targets in MOVES.items() if Status.OPEN in targets]
    statement = update(Order).where(Order.id == order_id, Order.status.in_(going))
    with db.session.session_factory.begin() as session:
        values = {"status": Status.OPEN.value, "session_id": session_id, "session_url": session_url}
        return _changes_one(session, statement.values(values))


def move(order: Order, target: Status, *, payment_intent: str | None = None) -> bool:
    """Move an order on from the state, and the Checkout Session, that it was read with.

    The move from unpaid to paid ships the order, in the same transaction: whoever moves it ships it, and nobody else.

    :param payment_intent: what the money came by, for moves to paid, held and refunded.
    :return: Whether it was this call that moved it; False when another one came first.
    :raises ValueError: when the table of moves has no such move.
    """
    if target not in MOVES.get(order.state, frozenset()):
        raise ValueError(f"An order cannot go from {order.state.value} to {target.value}.")
    statement = update(Order).where(
        Order.id == order.id, Order.status == order.status, Order.session_id == order.session_id
    )
    with db.session.session_factory.begin() as session:
        if not _changes_one(session, statement.values(status=target.value)):
            return False
        if payment_intent is not None and order.state in UNPAID:
            session.add(Payment(order_id=order.id, payment_intent=payment_intent, paid_at=int(time.time())))
        if target is Status.PAID and order.state in UNPAID:
            session.add(Shipment(order_id=order.id, shipped_at=int(time.time())))
        if target is Status.PAID and order.state is Status.REFUNDING:
            session.execute(delete(Refund).where(Refund.order_id == order.id))
        return True


def begin_refund(order: Order, stripe_key: str) -> bool:
    """Move a paid order to refunding, and note the key under which Stripe is asked; False when another one came first.

    :param stripe_key: an idempotency key for Stripe. Whoever asks for this refund later uses the same.
    """
    statement = update(Order).where(Order.id == order.id, Order.status == Status.PAID.value)
    with db.session.session_factory.begin() as session:
        if not _changes_one(session, statement.values(status=Status.REFUNDING.value)):
            return False
        session.add(Refund(order_id=order.id, stripe_key=stripe_key, asked_at=int(time.time())))
        return True


def _changes_one(session: Session, statement: Update) -> bool:
    return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1
