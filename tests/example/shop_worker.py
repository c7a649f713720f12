"""The shop in a process of its own, for the tests that kill it in the middle of an event.

    python -m tests.example.shop_worker '{"STRIPE_API_KEY": ...}' DIRECTORY [PORT]

prints its port. It notes in DIRECTORY when it begins and ends to handle an event about a session, and waits at either
moment for as long as there is a file named ``hold-before`` or ``hold-after``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import example_app
from example_app.payments import fulfil
from example_app.serving import Server


def slowly(directory: Path) -> Any:
    def handle(event: Any) -> None:
        if event.type.startswith("checkout.session."):
            pause(directory, "before")
        fulfil(event)
        if event.type.startswith("checkout.session."):
            pause(directory, "after")

    return handle


def pause(directory: Path, moment: str) -> None:
    with (directory / moment).open("a") as file:
        file.write(f"{os.getpid()}\n")
    deadline = time.monotonic() + 60
    while (directory / f"hold-{moment}").exists() and time.monotonic() < deadline:
        time.sleep(0.005)


def main() -> None:
    config, directory, port = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    example_app.fulfil = slowly(directory)  # type: ignore[attr-defined]
    server = Server(port=port)
    server.start(example_app.create_app(config))
    print(server.port, flush=True)
    time.sleep(120)  # it is killed long before


if __name__ == "__main__":
    main()
