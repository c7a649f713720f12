"""What a buyer has paid in a session, and what went back. Values at one moment; a change makes another value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROCESSING, SUCCEEDED, FAILED = "processing", "succeeded", "failed"


@dataclass(frozen=True)
class NewRefund:
    """What a refund is created from.

    :ivar payment: the id of a PaymentIntent or of a Charge.
    :ivar amount: in minor units; None for all that is left.
    """

    payment: str
    amount: int | None = None
    reason: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refund:
    """Money that went back at once. ``amount`` is in minor units, ``created`` in seconds since the epoch."""

    id: str
    amount: int
    created: int
    new: NewRefund


@dataclass(frozen=True)
class Payment:
    """One PaymentIntent with its one Charge: by card, which succeeds at once, or by transfer, which takes its time."""

    intent_id: str
    charge_id: str
    created: int
    method: str  # "card" or "customer_balance", as Stripe calls a bank transfer
    status: str
    refunds: tuple[Refund, ...] = ()

    @property
    def refunded(self) -> int:
        """How much went back so far, in minor units."""
        return sum(refund.amount for refund in self.refunds)
