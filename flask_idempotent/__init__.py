"""Idempotency keys for Flask: the work is done once, and every retry gets the same answer."""

from .active import Active, current_idempotency
from .blueprint import create_blueprint
from .cache import IdempotencyCache
from .checkout import CheckoutError, CheckoutRefused, stripe_client, stripe_errors
from .config import ConfigurationError, Settings
from .core.steps import StepError
from .core.store import StoreError
from .decorator import idempotent
from .errors import (
    IdempotencyError,
    KeyInvalid,
    KeyMissing,
    KeyReused,
    OutcomeUnknown,
    RecordUnreadable,
    RequestInProgress,
    StoreUnavailable,
)
from .extension import Idempotency
from .runner import Runner
from .webhook import WebhookRefused

__all__ = [
    "Active",
    "CheckoutError",
    "CheckoutRefused",
    "ConfigurationError",
    "Idempotency",
    "IdempotencyCache",
    "IdempotencyError",
    "KeyInvalid",
    "KeyMissing",
    "KeyReused",
    "OutcomeUnknown",
    "RecordUnreadable",
    "RequestInProgress",
    "Runner",
    "Settings",
    "StepError",
    "StoreError",
    "StoreUnavailable",
    "WebhookRefused",
    "create_blueprint",
    "current_idempotency",
    "idempotent",
    "stripe_client",
    "stripe_errors",
]
