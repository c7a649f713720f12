"""An offline stand-in for Stripe Checkout on a real loopback socket, driven by the real client over HTTP."""

from __future__ import annotations

from .courier import Attempt
from .faults import Fault
from .server import Sandbox

__all__ = ["Attempt", "Fault", "Sandbox"]
