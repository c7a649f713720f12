"""``python -m example_app.sandbox --port N``: the sandbox by itself, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys

from ..serving import stop_signals
from .server import Sandbox


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; raises SystemExit with a message when the port cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m example_app.sandbox", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; any free one by default")
    port = parser.parse_args(arguments).port
    try:
        sandbox = Sandbox(port=port)
    except (OSError, OverflowError) as error:
        sys.exit(f"The sandbox cannot listen on port {port}: {getattr(error, 'strerror', None) or error}.")
    with stop_signals() as wait, sandbox:
        print(f"Stripe sandbox on {sandbox.url} (any key that begins with sk_test_)", flush=True)
        wait()


if __name__ == "__main__":
    main()
