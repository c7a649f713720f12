"""Requests per second with one, two and four workers on one Redis."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from tests.servers.gunicorn import Gunicorn
from tests.servers.standalone import RedisProcess

from ..measure import server_cpu
from ..table import Cell, markdown
from .serving import CONNECTIONS, THREADS, Load, load, memory, served

WORKERS = (1, 2, 4)
WARM_SECONDS = 1  # until all workers are there: connections stay with whoever took them
HEADS = ("guard", "workers", "first/s", "x bare", "Redis CPU us", "replays/s", "x bare", "Redis CPU us", "MiB each")
EXPLANATION = f"""
gunicorn with {THREADS} threads a worker, wrk with {CONNECTIONS} connections, all of it and Redis on this machine.
*Redis CPU* is the server's processor time per request, *MiB each* what one worker takes after that (Pss).
"""


def section(server: RedisProcess, seconds: int) -> str:
    """Measure, and make the text.

    :param seconds: for each number in the table.
    """
    with tempfile.TemporaryDirectory() as directory:
        guards: dict[str, dict[str, Any] | None] = {
            "none": None,
            "Redis alone": {"CACHE_REDIS_URL": server.url, "LOCAL_TIER": None, "ON_OUTAGE": "reject"},
            "memory tier": {"CACHE_REDIS_URL": server.url, "LOCAL_TIER": "memory"},
            "shared tier": {
                "CACHE_REDIS_URL": server.url,
                "LOCAL_TIER": "shared",
                "SHARED_PATH": str(Path(directory) / "records"),
            },
        }
        return f"{EXPLANATION}\n{markdown(HEADS, _rows(guards, server, seconds))}"


def _rows(guards: dict[str, dict[str, Any] | None], server: RedisProcess, seconds: int) -> Iterator[list[Cell]]:
    client = redis.Redis(port=server.port, protocol=2)
    bare: dict[int, Load] = {}
    for name, settings in guards.items():
        for workers in WORKERS:
            client.flushall()
            with served(workers, settings) as gunicorn:
                load(gunicorn, WARM_SECONDS, fresh=True)
                first, first_cpu = _loaded(gunicorn, client, seconds, fresh=True)
                bare.setdefault(workers, first)
                taken = memory(gunicorn)
                if settings is None:
                    yield [name, workers, first.per_second, 1, None, None, None, None, taken]
                    continue
                again, again_cpu = _loaded(gunicorn, client, seconds, fresh=False)
                unguarded = bare[workers].per_second
                yield [name, workers, *_cells(first, unguarded, first_cpu), *_cells(again, unguarded, again_cpu), taken]


def _cells(seen: Load, unguarded: float, cpu: float) -> tuple[Cell, ...]:
    return seen.per_second, seen.per_second / unguarded, cpu


def _loaded(gunicorn: Gunicorn, client: redis.Redis, seconds: int, *, fresh: bool) -> tuple[Load, float]:
    """What came of a load, and Redis' CPU per request in microseconds."""
    before = server_cpu(client)
    seen = load(gunicorn, seconds, fresh=fresh)
    tolerated = 0 if fresh else CONNECTIONS  # the first ones with the same key may meet while one of them runs
    if seen.failed > tolerated:
        raise RuntimeError(f"{seen.failed} of {seen.requests} requests failed")
    return seen, 1e6 * (server_cpu(client) - before) / seen.requests
