"""The way to Stripe: sessions under a derived key, and Stripe's errors as answers. Imports stripe on first use."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from flask import Flask, current_app

from .active import current_idempotency
from .errors import Problem

if TYPE_CHECKING:
    import stripe

log = logging.getLogger("flask_idempotent")

NETWORK_RETRIES: Final = 2
TIMEOUTS: Final = (3.0, 10.0)  # seconds to connect, and to wait for an answer
RETRY_AFTER: Final = 1  # seconds
FURTHER_KEYS: Final = 3
_CLIENT: Final = "idempotency.stripe"


class CheckoutError(Problem):
    """Base of the answers that the checkout gives when no session was made."""

    problem_code = "checkout-error"
    title = "The checkout failed"


class CheckoutRefused(CheckoutError):
    """The request cannot be turned into a session. Hosts raise it from their ``session_params``.

    :param detail: what is wrong and what to send instead.
    :param field: the member of the JSON that is at fault, such as ``items[0].quantity``.
    """

    code = 400
    problem_code = "checkout-refused"
    title = "The checkout request was refused"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.field = field

    def members(self) -> dict[str, Any]:
        """The members of the problem object, with ``field`` where one is at fault."""
        return super().members() | ({"field": self.field} if self.field else {})


class CardDeclined(CheckoutError):
    """The card was refused; the message is Stripe's own for the buyer."""

    code = 402
    problem_code = "card-declined"
    title = "The card was declined"


class StripeBusy(CheckoutError):
    """Stripe is still working on the same request."""

    code = 409
    problem_code = "payment-in-progress"
    title = "The payment provider is still processing this request"
    detail = "Send the same request again in a moment, with the same key."
    retryable = True


class StripeUnavailable(CheckoutError):
    """Stripe cannot be reached, is overloaded or failed. What it did is unknown; the same key settles it."""

    code = 503
    problem_code = "payment-unavailable"
    title = "The payment provider cannot be reached"
    detail = "Send the same request again in a moment, with the same key: you will not pay twice."
    retryable = True


class StripeMisconfigured(CheckoutError):
    """Stripe refused what this server sent. That is the server's fault: it is logged and not shown."""

    code = 500
    problem_code = "payment-misconfigured"
    title = "The checkout could not be processed"
    detail = "The shop's own request to the payment provider was refused. The operator has been told."


def stripe_client(app: Flask | None = None) -> stripe.StripeClient:
    """The Stripe client of an app, made on first use.

    It reads ``STRIPE_API_KEY``, and ``STRIPE_API_BASE`` for a stand-in, from the app's config, else from the
    environment. It tries again twice after connection errors, 409 and 5xx, and gives up on a silent server after
    seconds instead of 80.

    :param app: by default the current app.
    :raises StripeMisconfigured: there is no key.
    """
    app = app or current_app._get_current_object()  # type: ignore[attr-defined]
    client: stripe.StripeClient | None = app.extensions.get(_CLIENT)
    if client is None:
        client = app.extensions[_CLIENT] = _new_client(setting(app, "STRIPE_API_KEY"), setting(app, "STRIPE_API_BASE"))
    return client


def create_session(client: stripe.StripeClient, params: Mapping[str, Any]) -> stripe.checkout.Session:
    """Create a Checkout Session under a key derived from the current request, so that all its retries get the same
    session.

    Stripe keeps a 5xx for a day and repeats it under the same key. Where it says so, a further key is derived: at
    worst an unpaid session stays behind that nobody has seen.

    :param params: as for ``client.v1.checkout.sessions.create``.
    :raises CheckoutError: in the form of one of its children.
    """
    import stripe

    last = FURTHER_KEYS + current_idempotency.attempt - 1  # each attempt may go one key further than the one before
    for number in range(1, last + 1):
        key = current_idempotency.derive("checkout session" if number == 1 else f"checkout session {number}")
        try:
            return client.v1.checkout.sessions.create(params, {"idempotency_key": key})  # type: ignore[arg-type]
        except stripe.StripeError as error:
            if not is_stored_failure(error) or number == last:
                _answer(error)
            log.warning(
                "Stripe repeats a stored failure; trying a further key", extra={"stripe_request": error.request_id}
            )
    raise AssertionError("unreachable")


@contextmanager
def stripe_errors() -> Iterator[None]:
    """Turn the errors of Stripe's client inside the block into answers, as the checkout does::

        with stripe_errors():
            client.v1.refunds.create(params, {"idempotency_key": current_idempotency.derive("refund")})

    :raises CheckoutError: in the form of one of its children.
    """
    import stripe

    try:
        yield
    except stripe.StripeError as error:
        _answer(error)


def _new_client(api_key: str | None, api_base: str | None) -> stripe.StripeClient:
    if not api_key:
        log.error("STRIPE_API_KEY is set neither in the app's config nor in the environment")
        raise StripeMisconfigured
    import stripe

    stripe.enable_telemetry = False
    return stripe.StripeClient(
        api_key,
        base_addresses={"api": api_base} if api_base else {},
        max_network_retries=NETWORK_RETRIES,
        http_client=stripe.RequestsClient(timeout=TIMEOUTS),
    )


def setting(app: Flask, name: str) -> str | None:
    """A setting of Stripe's, from the app's config, else from the environment; None where it is missing or empty."""
    return app.config.get(name) or os.environ.get(name) or None


def is_stored_failure(error: stripe.StripeError) -> bool:
    """Whether Stripe repeats a 5xx that it keeps under the idempotency key: asking again with it is of no use."""
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return (error.http_status or 0) >= 500 and headers.get("idempotent-replayed") == "true"


def _answer(error: stripe.StripeError) -> NoReturn:
    """Turn Stripe's error into an answer; nothing that Stripe says about our own request is shown."""
    import stripe

    if isinstance(error, stripe.CardError):
        raise CardDeclined(error.user_message or "The card was declined. Try another one.") from error
    if error.http_status == 409:
        raise StripeBusy(retry_after=RETRY_AFTER) from error
    away = isinstance(error, stripe.APIConnectionError | stripe.RateLimitError) or (error.http_status or 0) >= 500
    if away:
        log.warning("Stripe is unavailable: %s", type(error).__name__, extra={"stripe_request": error.request_id})
        raise StripeUnavailable(retry_after=RETRY_AFTER) from error
    log.error("Stripe refused this server's request: %s", error, extra={"stripe_request": error.request_id})
    raise StripeMisconfigured from error
