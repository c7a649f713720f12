"""The sandbox's own controls, which Stripe does not have: faults on demand, and a look at what happened."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from flask import Blueprint, request

from .account import current_account
from .errors import ApiError
from .events import event_object
from .faults import Fault
from .objects import session_object

control = Blueprint("control", __name__, url_prefix="/_sandbox")

FAULT_FIELDS = frozenset({"at", "delay", "error", "lost_answer", "times"})


@control.post("/faults")
def add_fault() -> tuple[dict[str, Any], int]:
    """Let the next calls go wrong.

    The JSON body holds the parts of a Fault (``delay`` in seconds, ``error`` 402, 429, 500, ``lost_answer``, ``at``)
    and ``times``, 1 by default. It must be JSON by its content type: no other site's form can send that.
    """
    wanted = request.get_json()
    if not isinstance(wanted, dict) or not wanted.keys() <= FAULT_FIELDS:
        return {"message": f"Send a JSON object with some of: {', '.join(sorted(FAULT_FIELDS))}."}, 400
    times = wanted.pop("times", 1)
    try:
        current_account().faults.put(Fault(**wanted), times)
    except ValueError as error:
        return {"message": f"{error}."}, 400
    return state(), 201


@control.delete("/faults")
def clear_faults() -> dict[str, Any]:
    """Forget the faults that still wait."""
    current_account().faults.clear()
    return state()


@control.post("/events/<event_id>/deliver")
def deliver_again(event_id: str) -> tuple[dict[str, Any], int]:
    """Deliver an event once more, as Stripe's dashboard and ``stripe events resend`` do. Takes an empty JSON object."""
    request.get_json()
    account = current_account()
    try:
        account.deliver(account.events.get(event_id))
    except ApiError as error:
        return {"message": error.message}, error.status
    return state(), 202


@control.get("/state")
def state() -> dict[str, Any]:
    """Show the sessions, the events and their deliveries, the POSTs by how they ended, and how many faults wait."""
    account = current_account()
    base_url = request.host_url.rstrip("/")
    return {
        "sessions": [session_object(session, base_url) for session in account.sessions.all()],
        "events": [event_object(event) for event in account.events.all()],
        "deliveries": [asdict(attempt) for attempt in account.attempts()],
        "requests": account.counts(),
        "faults_waiting": len(account.faults),
    }
