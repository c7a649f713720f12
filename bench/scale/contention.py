"""A thousand requests on one key."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from tests.servers.standalone import RedisProcess

from ..requests import body
from ..table import Cell, markdown, median, p99
from .serving import THREADS, served

REQUESTS, CLIENTS, WORKERS = 1000, 40, 4
PATIENCE = 20  # seconds
HEADS = ("guard", "duplicates", "runs", "answered", "409", "others", "median ms", "p99 ms", "all of it s")
EXPLANATION = f"""
{REQUESTS:,} requests with one key from {CLIENTS} clients at once, to {WORKERS} gunicorn workers of {THREADS} threads;
the view takes 200 ms. Duplicates that come while it runs get 409, or wait for the outcome.
"""


def section(server: RedisProcess) -> str:
    """Measure, and make the text."""
    with TemporaryDirectory() as directory:
        return f"{EXPLANATION}\n{markdown(HEADS, _rows(server, Path(directory)))}"


def _rows(server: RedisProcess, directory: Path) -> Iterator[list[Cell]]:
    base: dict[str, Any] = {"CACHE_REDIS_URL": server.url, "STORE_TIMEOUT": 5}
    for name, settings in {
        "Redis alone": base | {"LOCAL_TIER": None, "ON_OUTAGE": "reject"},
        "shared tier": base | {"LOCAL_TIER": "shared", "SHARED_PATH": str(directory / "records")},
    }.items():
        for how, wait in (("refused", 0), ("wait", PATIENCE)):
            with served(WORKERS, settings | {"WAIT": wait}) as gunicorn:
                yield [name, how, *_contended(gunicorn.port)]


def _contended(port: int) -> list[Cell]:
    key = uuid4().hex

    def client(_: int) -> list[tuple[int, bytes, float]]:
        connection = HTTPConnection("127.0.0.1", port, timeout=2 * PATIENCE)
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        seen = []
        for _ in range(REQUESTS // CLIENTS):
            began = time.perf_counter()
            connection.request("POST", "/slow", body(key), headers)
            answer = connection.getresponse()
            seen.append((answer.status, answer.read(), 1000 * (time.perf_counter() - began)))
        return seen

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        seen = [each for answers in pool.map(client, range(CLIENTS)) for each in answers]
    took = time.perf_counter() - began
    statuses = Counter(status for status, _, _ in seen)
    runs = len({body for status, body, _ in seen if status == 200})
    others = len(seen) - statuses[200] - statuses[409]
    durations = [duration for _, _, duration in seen]
    return [runs, statuses[200], statuses[409], others, median(durations), p99(durations), took]
