"""Orders in the database, in short transactions: none is open while Stripe is asked.

| from | to | when |
| --- | --- | --- |
| created | open | Stripe has a Checkout Session for it |
| open | open | Stripe has a later session for it, because the outcome of an earlier one stayed unknown |
| open | paid | Stripe says paid, and the amount and the currency are the order's |
| open | expired | the session ended without a payment |
| open | failed | Stripe says paid, but another amount or currency |

A move is a conditional UPDATE that names the state it starts from; who finds no row there lost the race and
changes nothing. Nothing leads away from paid, expired and failed.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CheckConstraint, ForeignKey, String, Text, Update, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.schema import CreateTable

if TYPE_CHECKING:
    from sqlalchemy import CursorResult


class Base(DeclarativeBase):
    """What every table of the shop is built on."""


# Orders stay readable after their transaction, and without another query.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})


class Status(enum.StrEnum):
    """Where an order is between the click and the payment."""

    CREATED = "created"
    OPEN = "open"
    PAID = "paid"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing leads away from here."""
        return self not in MOVES


MOVES: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.CREATED: frozenset({Status.OPEN}),
        Status.OPEN: frozenset({Status.OPEN, Status.PAID, Status.EXPIRED, Status.FAILED}),
    }
)


@dataclass(frozen=True)
class Item:
    """So many pieces of something at a price in minor units, as they were when the order was made."""

    product: str
    name: str
    description: str
    unit_amount: int
    quantity: int


class Order(Base):
    """One intent to buy. Its id comes from the idempotency key, so that a retry finds the same order.

    Whatever Stripe is told about an order is stored here, because the same key must always come with the same
    parameters: prices may change between two attempts, and so may the host name that the shop is reached by.
    """

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), default=Status.CREATED.value)
    currency: Mapped[str] = mapped_column(String(3))
    success_url: Mapped[str] = mapped_column(Text)
    cancel_url: Mapped[str] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(String(255), unique=True)
    session_url: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[int]  # seconds since the epoch
    lines: Mapped[list[OrderLine]] = relationship(order_by="OrderLine.position", lazy="selectin")

    @property
    def state(self) -> Status:
        """The status as one of the known ones."""
        return Status(self.status)

    @property
    def amount(self) -> int:
        """The total in minor units of the order's currency."""
        return sum(line.amount for line in self.lines)


class OrderLine(Base):
    """One line of an order; the price is the one of the moment when the order was made."""

    __tablename__ = "order_lines"
    __table_args__ = (CheckConstraint("quantity > 0"), CheckConstraint("unit_amount > 0"))

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str] = mapped_column(String(64))
    name: Mapped[str] = mapped_column(String(250))
    description: Mapped[str] = mapped_column(Text)
    unit_amount: Mapped[int]
    quantity: Mapped[int]

    @property
    def amount(self) -> int:
        """The line's total in minor units."""
        return self.unit_amount * self.quantity


def create_tables(app: Flask) -> None:
    """Create the tables that are not there yet; several workers may do so at once."""
    with app.app_context(), db.engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))


def find(order_id: str) -> Order | None:
    """Return the order with its lines, or None."""
    with db.session.session_factory() as session:
        return session.get(Order, order_id)


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
    """Note the Checkout Session of an order that is not final yet; returns whether there was such an order."""
    going = [status.value for status, targets in MOVES.items() if Status.OPEN in targets]
    statement = update(Order).where(Order.id == order_id, Order.status.in_(going))
    return _changes_one(statement.values(status=Status.OPEN.value, session_id=session_id, session_url=session_url))


def move(order: Order, target: Status) -> bool:
    """Move an order on from the state, and the Checkout Session, that it was read with.

    :return: Whether it was this call that moved it; False when another one came first.
    :raises ValueError: when the table of moves has no such move.
    """
    if target not in MOVES.get(order.state, frozenset()):
        raise ValueError(f"An order cannot go from {order.state.value} to {target.value}.")
    statement = update(Order).where(
        Order.id == order.id, Order.status == order.status, Order.session_id == order.session_id
    )
    return _changes_one(statement.values(status=target.value))


def _changes_one(statement: Update) -> bool:
    with db.session.session_factory.begin() as session:
        return cast("CursorResult[Any]", session.execute(statement)).rowcount == 1
