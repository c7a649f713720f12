"""What records take in Redis, and whether many of them make any of them slow."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import redis
from flask import Flask, Response

from flask_idempotent import Idempotency, idempotent
from tests.servers.standalone import RedisProcess

from .. import floor, ours, wsgi
from ..measure import Call, take_turns
from ..requests import View, key
from ..subject import REPLAYED
from ..table import Cell, markdown, median

SIZES = (0, 300, 1000, 10_000)
RECORDS = 200
ALLOWANCE = 250  # bytes that a record may take beyond the body
BATCH = 5000
ALONE = {"LOCAL_TIER": None, "ON_OUTAGE": "reject"}


def sizes(server: RedisProcess) -> str:
    """Bytes per record in Redis."""
    client = redis.Redis(port=server.port, protocol=2)
    rows = [_size(client, server, size) for size in SIZES]
    heads = (
        "body of random bytes",
        "key and value",
        "beyond the body",
        "memory",
        "beyond the body",
        f"at most {ALLOWANCE}",
    )
    text = """One record in Redis with its key, in bytes. *Memory* is by `MEMORY USAGE`: what we write, what Redis needs
to keep it, and what its allocator rounds up (sizes go in steps of 64 from 256 bytes on, of 256 from 1 KiB on)."""
    return f"{text}\n\n{markdown(heads, rows)}"


def _size(client: redis.Redis, server: RedisProcess, size: int) -> list[Cell]:
    client.flushall()
    app = Flask("sizes")
    app.config.update({f"IDEMPOTENCY_{name}": value for name, value in ALONE.items()})
    app.config["IDEMPOTENCY_CACHE_REDIS_URL"] = server.url
    Idempotency(app)
    app.post("/")(idempotent(lambda: Response(os.urandom(size), mimetype="application/octet-stream")))
    send = wsgi.sender(app)
    for n in range(RECORDS):
        send(key(n))
    names = list(client.scan_iter("idempotency:*", count=RECORDS))
    written = median([float(len(name) + client.strlen(name)) for name in names])
    taken = median([float(client.memory_usage(name)) for name in names])
    return [str(size), written, written - size, taken, taken - size, "yes" if taken - size <= ALLOWANCE else "NO"]


def counts(server: RedisProcess, most: int, rounds: int) -> str:
    """What a first run and a replay cost beside many stored records.

    :param most: the largest number of records.
    """
    heads = ("store", "records", "first run adds us", "x GET", "replay adds us", "x GET")
    text = "Beside many other records, with the GET of the same moment:"
    return f"{text}\n\n{markdown(heads, [*_in_memory(server, most, rounds), *_in_redis(server, most, rounds)])}"


def _in_memory(server: RedisProcess, most: int, rounds: int) -> Iterator[list[Cell]]:
    view = View()
    app = ours.guarded(view, "counts", {"CACHE_TYPE": "SimpleCache", "CACHE_THRESHOLD": 2 * most, "TTL": 86400})
    assert app is not None
    store = app.extensions["idempotency"].state_of(app).store
    send = wsgi.sender(app)

    def fill(start: int, stop: int) -> None:
        for n in range(start, stop):
            store.set(f"idempotency:{{{n:043}}}", _RECORD, 86_400_000 + n)

    yield from _grown("SimpleCache", send, fill, server, most, rounds)


def _in_redis(server: RedisProcess, most: int, rounds: int) -> Iterator[list[Cell]]:
    client = redis.Redis(port=server.port, protocol=2)
    client.flushall()
    view = View()
    app = ours.guarded(view, "counts", {"CACHE_REDIS_URL": server.url, **ALONE})
    assert app is not None
    send = wsgi.sender(app)

    def fill(start: int, stop: int) -> None:
        for begin in range(start, stop, BATCH):
            with client.pipeline(transaction=False) as pipeline:
                for n in range(begin, min(begin + BATCH, stop)):
                    pipeline.set(f"idempotency:{{{n:043}}}", _RECORD, ex=86400)
                pipeline.execute()

    yield from _grown("Redis alone", send, fill, server, most, rounds)
    client.flushall()


# A finished record of about the usual size; only its state is looked at.
_RECORD = b"\x01D\x00\x01" + bytes(48) + b"%013d" % 4_000_000_000_000 + bytes(350)


def _grown(
    store: str, send: wsgi.Send, fill: Callable[[int, int], None], server: RedisProcess, most: int, rounds: int
) -> Iterator[list[Cell]]:
    bare = wsgi.bare(View())
    calls: dict[str, Call] = {
        "GET": floor.redis_py(server),
        "bare": lambda n: bare(key(n)),
        "first run": lambda n: send(key(n)),
        "replay": lambda _: send(REPLAYED),
    }
    stored = 0
    for count in (10**power for power in range(3, 7)):
        if count > most:
            return
        fill(stored, count)
        stored = count
        times: dict[str, Any] = {name: median(each) for name, each in take_turns(calls, rounds).items()}
        first, replay = (times[name] - times["bare"] for name in ("first run", "replay"))
        yield [store, f"{count:,}", first, first / times["GET"], replay, replay / times["GET"]]
