"""Real servers and a real client: gunicorn, and wrk."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from tests.servers.gunicorn import Gunicorn

from ..requests import body

THREADS = 4  # of each worker
CONNECTIONS = 16
_SCRIPT = Path(__file__).with_name("keys.lua")


@dataclass(frozen=True)
class Load:
    """What wrk has seen.

    :param requests: how many were answered.
    :param per_second: how many in a second.
    :param failed: how many answers were neither 2xx nor 3xx, or did not come.
    """

    requests: int
    per_second: float
    failed: int


@contextmanager
def served(workers: int, settings: dict[str, Any] | None) -> Iterator[Gunicorn]:
    """Serve the app of :mod:`bench.scale.app`.

    :param settings: of the guard, by their names without ``IDEMPOTENCY_``; None: no guard.
    """
    with TemporaryDirectory() as directory:
        app = f"bench.scale.app:create({settings!r})"
        gunicorn = Gunicorn(Path(directory), app, workers=workers, threads=THREADS)
        gunicorn.start()
        try:
            yield gunicorn
        finally:
            gunicorn.stop()


def memory(gunicorn: Gunicorn) -> float:
    """What one worker takes, in MiB, its share of the pages that it shares included (Pss)."""
    shares = [_number(r"Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text()) for pid in gunicorn.pids]
    return sum(shares) / len(shares) / 1024


def load(gunicorn: Gunicorn, seconds: int, *, fresh: bool) -> Load:
    """Send requests with wrk as fast as they are answered.

    :param fresh: whether each has a key of its own; otherwise all have the same.
    """
    binary = shutil.which("wrk")
    if binary is None:
        raise RuntimeError("wrk is missing: apt-get install wrk")
    options = f"-t1 -c{CONNECTIONS} -d{seconds}s -s {_SCRIPT} http://127.0.0.1:{gunicorn.port}/"
    command = [binary, *options.split(), "--", uuid4().hex, "fresh" if fresh else "same", body(uuid4().hex).decode()]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lost = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", said)))
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = lost + (int(refused[1]) if refused else 0)
    return Load(int(_number(r"(\d+) requests in", said)), _number(r"Requests/sec:\s+([\d.]+)", said), failed)


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"no {pattern} in {text}")
    return float(found[1])
