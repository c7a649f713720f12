"""``python -m example_app``: the shop on this computer, until Ctrl-C."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import ExitStack

from . import create_app, idempotency
from .sandbox import Sandbox
from .serving import Server, answer_to_loopback_names, stop_signals

DEFAULT_PORT = 5000
WITHOUT_WEBHOOK = (
    "No order becomes paid without Stripe's events: run `stripe listen --forward-to {url}/webhook`, and start the shop "
    "again with the secret that it prints as STRIPE_WEBHOOK_SECRET."
)


def main() -> None:
    """Serve the shop until SIGINT or SIGTERM.

    The environment says how: ``PORT`` (else 5000, or any free port when that is taken), ``STRIPE_API_KEY``
    with ``STRIPE_WEBHOOK_SECRET`` (else the offline sandbox is started), ``DATABASE_URL`` and whatever
    flask_idempotent reads.

    :raises SystemExit: with a message when ``PORT`` cannot be used.
    """
    with stop_signals() as wait, ExitStack() as stack:
        server = stack.enter_context(listen(os.environ.get("PORT")))
        config: dict[str, object] = {}
        payments = "Stripe"
        if not os.environ.get("STRIPE_API_KEY"):
            sandbox = stack.enter_context(Sandbox())
            config.update(
                STRIPE_API_KEY="sk_test_sandbox",
                STRIPE_API_BASE=sandbox.url,
                STRIPE_WEBHOOK_SECRET=sandbox.add_webhook(f"{server.url}/webhook"),
            )
            payments = f"offline sandbox at {sandbox.url}"
        app = create_app(config)
        answer_to_loopback_names(app)
        with app.app_context():
            store = idempotency.stats()["cacheType"]
        server.start(app)
        print(f"Shop on {server.url} · payments: {payments} · idempotency store: {store}", flush=True)
        if not app.config["STRIPE_WEBHOOK_SECRET"]:
            print(WITHOUT_WEBHOOK.format(url=server.url), flush=True)
        wait()


def listen(port: str | None) -> Server:
    """Open the shop's socket.

    :param port: the port that was asked for; None or empty takes 5000, or any free port when that is taken.
    :raises SystemExit: with a message when the port that was asked for is no port, or cannot be had.
    """
    if not port:
        try:
            return Server(port=DEFAULT_PORT)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return Server()
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        sys.exit(f"PORT takes a number from 0 to 65535, not {port!r}.")
    try:
        return Server(port=int(port))
    except OSError as error:
        sys.exit(f"PORT {port} cannot be used: {error.strerror}. Choose another one, or leave PORT out.")


if __name__ == "__main__":
    main()
