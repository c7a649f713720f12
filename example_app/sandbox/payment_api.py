"""PaymentIntents, Charges and Refunds over the API."""

from __future__ import annotations

from flask import Blueprint, Response, request

from .account import current_account
from .errors import no_such
from .execution import Outcome, disturbed, execute_once, expansion, list_object, page, show
from .forms import Tree, decode
from .params import read_new_refund
from .payment_objects import charge_object, payment_intent_object, refund_object
from .payments import Payment, Refund
from .sessions import Session

payment_api = Blueprint("payments", __name__)

NOTHING: frozenset[str] = frozenset()


@payment_api.post("/refunds")
def create_refund() -> Response:
    """Send a payment back, whole or in part, with whatever fault waits for it."""

    def create(form: Tree) -> Outcome:
        expansion(form, NOTHING)
        new = read_new_refund(form)
        return disturbed("refunds", lambda: refund_object(*current_account().sessions.refund(new)))

    return execute_once(create)


@payment_api.get("/refunds/<refund_id>")
def retrieve_refund(refund_id: str) -> Response:
    """Show a refund."""
    for session, payment, refund in _refunds():
        if refund.id == refund_id:
            return show(refund_object(session, payment, refund))
    raise no_such("refund", refund_id)


@payment_api.get("/refunds")
def list_refunds() -> Response:
    """Show a page of the refunds, the newest first; ``payment_intent`` and ``charge`` ask for those of one."""
    found = sorted(_refunds(), key=lambda entry: entry[2].created, reverse=True)
    for name in ("payment_intent", "charge"):
        wanted = request.args.get(name)
        if wanted is not None:
            found = [entry for entry in found if wanted in (entry[1].intent_id, entry[1].charge_id)]
    shown, more = page(found, lambda entry: entry[2].id)
    return show(list_object([refund_object(*entry) for entry in shown], has_more=more))


@payment_api.get("/payment_intents/<intent_id>")
def retrieve_payment_intent(intent_id: str) -> Response:
    """Show a payment as it is now."""
    expand = expansion(decode(request.args.items(multi=True)), frozenset({"latest_charge"}))
    session, payment = current_account().sessions.of_payment(intent_id, "payment_intent")
    return show(payment_intent_object(session, payment, with_charge=bool(expand)))


@payment_api.get("/charges/<charge_id>")
def retrieve_charge(charge_id: str) -> Response:
    """Show a charge as it is now."""
    expansion(decode(request.args.items(multi=True)), NOTHING)
    return show(charge_object(*current_account().sessions.of_payment(charge_id, "charge")))


def _refunds() -> list[tuple[Session, Payment, Refund]]:
    return [
        (session, session.payment, refund)
        for session in current_account().sessions.all()
        if session.payment is not None
        for refund in session.payment.refunds
    ]
