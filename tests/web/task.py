"""A command of a real deployment, in a process of its own, for the tests that kill it and let it race.

    python -m tests.web.task '{"IDEMPOTENCY_CACHE_REDIS_URL": "redis://..."}' DIRECTORY

runs one function under the key ``k``. That notes in DIRECTORY that it began and ended, and waits while there is a file
named hold. Prints what came of it: the result, or the name of the error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from flask import Flask

from flask_idempotent import Idempotency, IdempotencyError, current_idempotency


def work(directory: str) -> dict[str, Any]:
    note(directory, "began")
    deadline = time.monotonic() + 30
    while (Path(directory) / "hold").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    note(directory, "ended")
    return {"process": os.getpid(), "attempt": current_idempotency.attempt}


def note(directory: str, word: str) -> None:
    with (Path(directory) / word).open("a") as file:
        file.write(f"{os.getpid()} {current_idempotency.attempt} {current_idempotency.derive('charge')}\n")


def main() -> None:
    app = Flask("shop")
    app.config.update(json.loads(sys.argv[1]))
    idempotency = Idempotency(app)
    try:
        print(json.dumps(idempotency.run("k", work, sys.argv[2])))
    except IdempotencyError as error:
        print(type(error).__name__)


if __name__ == "__main__":
    main()
