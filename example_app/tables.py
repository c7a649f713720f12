"""The shop's tables: an order, its lines, and the effects that it has once."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import CheckConstraint, ForeignKey, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.schema import CreateTable


class Base(DeclarativeBase):
    """What every table of the shop is built on."""


# Orders stay readable after their transaction, and without another query.
db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})


class Status(enum.StrEnum):
    """Where an order is between the click and the payment, and after it. The moves are in :data:`MOVES`."""

    CREATED = "created"
    OPEN = "open"
    PROCESSING = "processing"
    PAID = "paid"
    FAILED = "failed"
    EXPIRED = "expired"
    HELD = "held"
    REFUNDING = "refunding"
    REFUNDED = "refunded"

    @property
    def final(self) -> bool:
        """Whether the buyer has nothing more to wait for."""
        return self not in (Status.CREATED, Status.OPEN, Status.PROCESSING, Status.REFUNDING)


MOVES: Mapping[Status, frozenset[Status]] = MappingProxyType(
    {
        Status.CREATED: frozenset({Status.OPEN}),
        Status.OPEN: frozenset(
            {
                Status.OPEN,
                Status.PROCESSING,
                Status.PAID,
                Status.FAILED,
                Status.EXPIRED,
                Status.HELD,
                Status.REFUNDED,
            }
        ),
        Status.PROCESSING: frozenset({Status.PAID, Status.FAILED, Status.HELD, Status.REFUNDED}),
        Status.HELD: frozenset({Status.REFUNDED}),
        Status.PAID: frozenset({Status.REFUNDING, Status.REFUNDED}),
        Status.REFUNDING: frozenset({Status.REFUNDED, Status.PAID}),
    }
)
UNPAID = (Status.OPEN, Status.PROCESSING)  # whose move to paid ships the order


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
    payment: Mapped[Payment | None] = relationship(lazy="selectin")
    shipment: Mapped[Shipment | None] = relationship(lazy="selectin")
    refund: Mapped[Refund | None] = relationship(lazy="selectin")

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


class Payment(Base):
    """The money that arrived for an order; written with the move that says so."""

    __tablename__ = "payments"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    payment_intent: Mapped[str] = mapped_column(String(255), unique=True)
    paid_at: Mapped[int]  # seconds since the epoch


class Shipment(Base):
    """What is to be packed: the effect that must happen once. Written with the move to paid."""

    __tablename__ = "shipments"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    shipped_at: Mapped[int]  # seconds since the epoch


class Refund(Base):
    """A refund that was asked for, with the idempotency key under which Stripe is asked for it, however often."""

    __tablename__ = "refunds"

    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    stripe_key: Mapped[str] = mapped_column(String(255))
    asked_at: Mapped[int]  # seconds since the epoch


def create_tables(app: Flask) -> None:
    """Create the tables that are not there yet; several workers may do so at once."""
    with app.app_context(), db.engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
