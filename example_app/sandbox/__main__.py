"""``python -m example_app.sandbox --port N``: the sandbox by itself, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys

from ..serving import stop_signals
from .errors import ApiError
from .server import Sandbox


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; raises SystemExit with a message when the port cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m example_app.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; any free one by default")
    parser.add_argument("--webhook", metavar="URL", help="where to deliver events, on this computer")
    given = parser.parse_args(arguments)
    port = given.port
    try:
        sandbox = Sandbox(port=port)
    except (OSError, OverflowError) as error:
        sys.exit(f"The sandbox cannot listen on port {port}: {getattr(error, 'strerror', None) or error}.")
    with stop_signals() as wait, sandbox:
        print(f"Stripe sandbox on {sandbox.url} (any key that begins with sk_test_ or rk_test_)", flush=True)
        if given.webhook:
            print(f"Events go to {given.webhook}, signed with {add_webhook(sandbox, given.webhook)}", flush=True)
        wait()


def add_webhook(sandbox: Sandbox, url: str) -> str:
    """Return the secret of a new endpoint; raises SystemExit with a message when the address cannot be one."""
    try:
        return sandbox.add_webhook(url)
    except ApiError as error:
        sys.exit(f"--webhook: {error.message}")


if __name__ == "__main__":
    main()
