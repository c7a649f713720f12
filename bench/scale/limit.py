"""How much of Redis' one thread each question takes, and so how many requests one Redis carries."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis

from flask_idempotent.core.machine import head_of
from flask_idempotent.core.record import State
from flask_idempotent.core.store import Claim, Terms
from flask_idempotent.stores import scripts
from flask_idempotent.stores.wire import pack
from tests.servers.standalone import RedisProcess

from ..measure import server_cpu
from ..table import Cell, markdown

CONNECTIONS = 200
DAY = 86_400_000  # milliseconds
PAYLOAD = bytes(350)  # of a finished record of about the usual size
TERMS = Terms(lease_ms=30_000, ttl_ms=DAY)
HEADS = ("what Redis is asked", "CPU us", "a second", "with `appendonly yes`, CPU us", "a second")
EXPLANATION = f"""
Redis' processor time for a question, with {CONNECTIONS} connections that ask in turns, as workers do, and how
many it could answer in a second if it did nothing else. A first run is a claim and an outcome.
"""

Command = Callable[[int], bytes]


def section(server: RedisProcess, rounds: int) -> str:
    """Measure, and make the text.

    :param rounds: how often each connection asks.
    """
    took = _asked(server, rounds)
    with tempfile.TemporaryDirectory() as directory:
        durable = RedisProcess(Path(directory), "--appendonly", "yes").start()
        try:
            written = _asked(durable, rounds)
        finally:
            durable.stop()
    rows: list[list[Cell]] = [[name, *_cells(took[name]), *_cells(written[name])] for name in took]
    return f"{EXPLANATION}\n{markdown(HEADS, rows)}"


def _cells(micros: float) -> tuple[Cell, Cell]:
    return micros, f"{1e6 / micros:,.0f}"


def _asked(server: RedisProcess, rounds: int) -> dict[str, float]:
    """Microseconds of each question."""
    asked: dict[str, Command] = {
        "GET": lambda n: pack("GET", _key(n)),
        "a claim for a new key": _claim,
        "an outcome": _outcome,
        "a claim for a finished key: a replay": _claim,
    }
    with redis.Redis(port=server.port, protocol=2) as client, ExitStack() as opened:
        client.flushall()
        for script in scripts.SCRIPTS:
            client.script_load(script.text)
        sockets = [opened.enter_context(_connected(server)) for _ in range(CONNECTIONS)]
        took = {name: _cpu_per_command(client, sockets, command, rounds) for name, command in asked.items()}
        client.flushall()
    took["a first run"] = took["a claim for a new key"] + took["an outcome"]
    return took


def _connected(server: RedisProcess) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _cpu_per_command(client: redis.Redis, sockets: list[socket.socket], command: Command, rounds: int) -> float:
    """Microseconds."""
    before = server_cpu(client)
    for turn in range(rounds):
        for number, each in enumerate(sockets):
            each.sendall(command(turn * CONNECTIONS + number))
        for each in sockets:
            if each.recv(4096)[:1] == b"-":
                raise RuntimeError("Redis answered with an error")
    return 1e6 * (server_cpu(client) - before) / (rounds * CONNECTIONS)


def _key(n: int) -> str:
    return f"idempotency:{{{n:043}}}"


def _held(n: int) -> Claim:
    return Claim(_key(n), b"%016d" % n, bytes(32), TERMS)


def _claim(n: int) -> bytes:
    claim = _held(n)
    return scripts.CLAIM.call(claim.key, claim.owner, claim.fingerprint, TERMS.lease_ms, TERMS.ttl_ms, 1)


def _outcome(n: int) -> bytes:
    claim = _held(n)
    return scripts.COMPLETE.call(claim.key, claim.owner, head_of(claim, State.DONE), PAYLOAD, TERMS.ttl_ms)
