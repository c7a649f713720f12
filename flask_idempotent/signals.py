"""One blinker signal and one log record per outcome of a request.

A receiver gets the app as the sender and ``event``, an :class:`~flask_idempotent.core.guard.Occurrence`::

    @signals.replayed.connect_via(app)
    def count(app, event): ...

A receiver runs inside the request, or for ``lost_lease`` in the heartbeat's thread. What it raises is logged and goes
no further: an observer must not decide about a payment.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final
from weakref import ref

from blinker import Namespace, Signal
from flask import Flask

from .core.guard import Occurrence, Outcome

log = logging.getLogger("flask_idempotent")

_signals = Namespace()

claimed: Final = _signals.signal("idempotency-claimed", "The view is about to run.")
replayed: Final = _signals.signal("idempotency-replayed", "A stored outcome was given again.")
busy: Final = _signals.signal("idempotency-busy", "The first request with the key is still running.")
mismatched: Final = _signals.signal("idempotency-mismatched", "The key belongs to another request.")
outcome_unknown: Final = _signals.signal("idempotency-outcome-unknown", "The worker died; the route does not guess.")
completed: Final = _signals.signal("idempotency-completed", "An outcome was stored.")
failed: Final = _signals.signal("idempotency-failed", "The view failed; the same request may run again.")
released: Final = _signals.signal("idempotency-released", "The request was refused, and its key is free again.")
lost_lease: Final = _signals.signal("idempotency-lost-lease", "Another worker has taken the key over.")
unprotected: Final = _signals.signal("idempotency-unprotected", "The view runs without the store.")
unrecorded: Final = _signals.signal("idempotency-unrecorded", "The outcome could not be stored.")
outage: Final = _signals.signal("idempotency-outage", "Redis is away; each route follows its on_outage.")
recovered: Final = _signals.signal("idempotency-recovered", "Redis is back, and has what was recorded meanwhile.")
duplicated: Final = _signals.signal("idempotency-duplicated", "A request ran on two hosts during an outage.")

_BY_OUTCOME: Final[dict[Outcome, Signal]] = {
    Outcome.CLAIMED: claimed,
    Outcome.REPLAYED: replayed,
    Outcome.BUSY: busy,
    Outcome.MISMATCHED: mismatched,
    Outcome.UNKNOWN: outcome_unknown,
    Outcome.COMPLETED: completed,
    Outcome.FAILED: failed,
    Outcome.RELEASED: released,
    Outcome.LOST_LEASE: lost_lease,
    Outcome.UNPROTECTED: unprotected,
    Outcome.UNRECORDED: unrecorded,
    Outcome.OUTAGE: outage,
    Outcome.RECOVERED: recovered,
    Outcome.DUPLICATED: duplicated,
}
_LEVELS: Final = {
    Outcome.LOST_LEASE: logging.WARNING,
    Outcome.UNPROTECTED: logging.WARNING,
    Outcome.UNRECORDED: logging.ERROR,
}


def report(reference: ref[Flask], outcome: Outcome, key: str, error: Exception | None = None) -> None:
    """Log what became of a request, and tell the receivers. The log record carries the hashed key in ``extra``.

    :param reference: to the app, which an observer must not keep alive.
    """
    level = _LEVELS.get(outcome, logging.DEBUG)
    if log.isEnabledFor(level):
        extra = {"idempotency_outcome": outcome.value, "idempotency_key": key}
        with suppress(Exception):  # a filter or handler of the host's
            log.log(level, "idempotency: %s%s", outcome.value, f": {error}" if error else "", extra=extra)
    signal = _BY_OUTCOME[outcome]
    app = reference() if signal.receivers else None
    if app is None:
        return
    try:
        signal.send(app, event=Occurrence(outcome, key, error))
    except Exception:
        with suppress(Exception):
            log.exception("idempotency: a receiver of %s failed", outcome.value)
