"""The checks of a Redis: each asks all servers that take writes, and says what was found and what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Any, Final

from ..core.store import StoreError
from .cluster import ClusterNodes
from .failures import ERRORS, store_error
from .findings import Finding, Level, per_server
from .nodes import Nodes, SentinelNodes
from .questions import translated
from .redis import RedisStore
from .servers import EVICTION, PERSISTENCE, ROLE, SAFE_POLICY, Server, look
from .trial import scratch_key, try_out
from .wire import Reply, ServerError, pack

PINGS: Final = 20
CLOCK_SECONDS: Final = 1.0
OLDEST: Final = (6, 2)
LISTEN_SECONDS: Final = 1.0

Clock = Callable[[], float]


def examine(store: RedisStore, prefix: str, clock: Clock = time.time) -> list[Finding]:
    """Examine a Redis. Nothing else is looked at where it does not answer.

    :param prefix: what all keys of the app begin with.
    :param clock: of this host, seconds since the epoch.
    """
    store.condition.no_log()
    reached = _connection(store.nodes)
    if reached.level is Level.FAILURE:
        return [reached]
    checks: tuple[tuple[str, Callable[[], Iterable[Finding]]], ...] = (
        ("round trip", lambda: [round_trip(_pings(store.nodes), store.nodes.timeout)]),
        ("clock", lambda: [_clock(store.nodes, clock)]),
        ("servers", lambda: _servers(store)),
        ("rights", lambda: _rights(store, prefix)),
        ("wake-ups", lambda: [_wake_ups(store.nodes, prefix)]),
    )
    return [reached, *(finding for name, check in checks for finding in _guarded(name, check))]


def _guarded(name: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except StoreError as error:
        yield Finding(name, Level.FAILURE, str(error))


def _ask(nodes: Nodes, commands: bytes, count: int) -> dict[str, list[Reply]]:
    with translated:
        return nodes.each(commands, count)


def _connection(nodes: Nodes) -> Finding:
    try:
        answers = _ask(nodes, pack("PING"), 1)
        for (reply,) in answers.values():
            if isinstance(reply, ServerError):
                raise store_error(reply)
        return Finding("connection", Level.OK, _whereabouts(nodes, list(answers)))
    except StoreError as error:
        if error.outage:
            remedy = (
                "start it, or mend its address in IDEMPOTENCY_CACHE_*; where it is far away, raise "
                f"IDEMPOTENCY_STORE_TIMEOUT, which is {nodes.timeout:g} s"
            )
        else:
            remedy = f"mend name, password or rights; the name is {nodes.user!r}"
        return Finding("connection", Level.FAILURE, f"{error}; {remedy}")


def _whereabouts(nodes: Nodes, answering: list[str]) -> str:
    if isinstance(nodes, ClusterNodes):
        return f"{len(answering)} masters answer: {', '.join(answering)}"
    if isinstance(nodes, SentinelNodes):
        with translated, nodes.client() as client:
            at = client.connection_pool.connection_kwargs
        return f"the sentinels name the master {at['host']}:{at['port']}, which answers"
    return f"{nodes.name} answers"


def _pings(nodes: Nodes) -> float:
    """Seconds for one round trip to one server."""
    taken = []
    for _ in range(PINGS):
        began = time.perf_counter()
        servers = _ask(nodes, pack("PING"), 1)
        taken.append((time.perf_counter() - began) / len(servers))
    return median(taken)


def round_trip(seconds: float, timeout: float) -> Finding:
    """What a round trip means for requests, which wait for two.

    :param seconds: the median.
    :param timeout: of the store, in seconds.
    """
    text = f"{seconds * 1000:.2f} ms, the median of {PINGS}"
    if seconds > timeout / 4:
        advice = f"near the timeout of {timeout:g} s: raise IDEMPOTENCY_STORE_TIMEOUT, or move Redis nearer"
        return Finding("round trip", Level.WARNING, f"{text}; {advice}")
    return Finding("round trip", Level.OK, text)


def _clock(nodes: Nodes, clock: Clock) -> Finding:
    began = clock()
    answers = _ask(nodes, pack("TIME"), 1)
    here = (began + clock()) / 2
    offsets = [
        float(reply[0]) + float(reply[1]) / 1e6 - here for (reply,) in answers.values() if isinstance(reply, list)
    ]
    if not offsets:
        return Finding("clock", Level.NOTE, "unknown: the server does not tell the time")
    worst = max(offsets, key=abs)
    text = f"{round(worst, 2) or 0.0:+.2f} s from the clock of this host"
    if abs(worst) > CLOCK_SECONDS:
        return Finding("clock", Level.NOTE, f"{text}; leases go by the server's, log lines do not: set both by NTP")
    return Finding("clock", Level.OK, text)


def _servers(store: RedisStore) -> Iterator[Finding]:
    """What the servers say of themselves."""
    servers = look(store.nodes)
    questions: tuple[tuple[str, Callable[[Server], tuple[Level, str]]], ...] = (
        ("version", _version),
        (EVICTION, lambda server: _danger(server, EVICTION, f"maxmemory-policy {SAFE_POLICY}")),
        (PERSISTENCE, _persistence),
        (ROLE, _role),
        ("replicas", lambda server: _replicas(server, store.min_replicas, store.nodes.replicated)),
    )
    for check, question in questions:
        yield from per_server(check, {server.name: question(server) for server in servers})


def _version(server: Server) -> tuple[Level, str]:
    numbers = [int(part) for part in re.findall(r"\d+", server.version)[:2]]
    if not numbers:
        return Level.NOTE, "unknown: the server does not answer INFO; 6.2 is the oldest that is known to work"
    if tuple(numbers) < OLDEST:
        return Level.WARNING, f"{server.product} is older than 6.2, the oldest that is known to work; upgrade it"
    return Level.OK, server.product


def _danger(server: Server, check: str, fine: str) -> tuple[Level, str]:
    if text := server.dangers().get(check):
        return Level.WARNING, text
    if text := server.unknowns().get(check):
        return Level.NOTE, text
    return Level.OK, fine


def _persistence(server: Server) -> tuple[Level, str]:
    if server.persistence == "rdb":
        return Level.NOTE, "snapshots alone: what is newer than the last one dies with the server; set appendonly yes"
    return _danger(server, PERSISTENCE, f"appendonly yes ({server.persistence})")


def _role(server: Server) -> tuple[Level, str]:
    level, text = _danger(server, ROLE, "master")
    return (Level.FAILURE if level is Level.WARNING else level), text


def _replicas(server: Server, wanted: int, replicated: bool) -> tuple[Level, str]:
    """Whether enough of them are there, and whether they count."""
    if server.replicas is None:
        return Level.NOTE, f"unknown how many are connected; IDEMPOTENCY_MIN_REPLICAS is {wanted}"
    text = f"{server.replicas} connected, IDEMPOTENCY_MIN_REPLICAS is {wanted}"
    if server.replicas < wanted:
        return Level.FAILURE, f"{text}: no claim counts; connect more, or lower it"
    if replicated and not server.replicas:
        return Level.NOTE, f"{text}: nobody takes over when the master fails; add a replica"
    if replicated and not wanted:
        return Level.NOTE, f"{text}: a failover may lose the latest records; set it to 1 where that matters"
    return Level.OK, text


def _rights(store: RedisStore, prefix: str) -> Iterator[Finding]:
    """The commands one by one, because a script says which one it lacks to nobody; then a record's whole life."""
    key = scratch_key(prefix)
    commands = _commands(key, bool(store.min_replicas))
    asked = b"".join(pack(*command) for command in commands)
    answers = _ask(store.nodes, asked, len(commands))
    user = store.nodes.user
    found = {name: _missing(user, prefix, commands, replies) for name, replies in answers.items()}
    yield from per_server("rights", found)
    if all(level is Level.OK for level, _ in found.values()):
        yield try_out("trial", store, prefix)


def _commands(key: str, waits: bool) -> list[tuple[str | int, ...]]:
    """All that the store sends or its scripts call, in a form that leaves nothing behind."""
    return [
        ("EVALSHA", "0" * 40, 1, key), ("EVAL", "return 1", 1, key), ("TIME",),
        ("SET", key, "", "PX", 1000), ("GET", key), ("SETRANGE", key, 0, ""), ("APPEND", key, ""),
        ("PTTL", key), ("PEXPIRE", key, 1000), ("DEL", key),
        *([("WAIT", 0, 1)] if waits else []),
    ]  # fmt: skip


def _missing(user: str, prefix: str, commands: list[tuple[Any, ...]], replies: list[Reply]) -> tuple[Level, str]:
    """Which commands a user may not run. An error of another kind, such as a redirection, comes later than that."""
    forbidden, keys = [], False
    for (name, *_), reply in zip(commands, replies, strict=True):
        if isinstance(reply, ServerError) and reply.code == "NOPERM":
            is_key = "run the" not in reply.detail
            keys = keys or is_key
            forbidden += [] if is_key else [name.lower()]
    if not forbidden and not keys:
        return Level.OK, f"all {len(commands)} commands that are needed"
    lacks = [*forbidden, *([f"keys that begin with {prefix}"] if keys else [])]
    grants = [*(f"+{name}" for name in forbidden), *([f"~{prefix}*"] if keys else [])]
    return Level.FAILURE, f"the user {user!r} lacks {', '.join(lacks)}; ACL SETUSER {user} {' '.join(grants)}"


def _wake_ups(nodes: Nodes, prefix: str) -> Finding:
    """Whether what is published to a record's channel is heard."""
    try:
        seconds = _heard(nodes, scratch_key(prefix))
        trouble = "nothing was heard" if seconds is None else None
    except ERRORS as error:
        seconds, trouble = None, str(error)
    if trouble is None:
        return Finding("wake-ups", Level.OK, f"a message was heard after {(seconds or 0) * 1000:.2f} ms")
    rights = f"ACL SETUSER {nodes.user} +subscribe +unsubscribe +publish &{prefix}*"
    return Finding("wake-ups", Level.NOTE, f"{trouble}; requests that wait ask again and again instead; {rights}")


def _heard(nodes: Nodes, channel: str) -> float | None:
    """Seconds from a message to its receipt; None when it does not come."""
    with nodes.client() as client, client.pubsub() as listener:
        listener.subscribe(channel)
        began, deadline = 0.0, time.monotonic() + LISTEN_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            message = listener.get_message(timeout=left)
            if message and message["type"] == "subscribe":
                began = time.monotonic()
                (reply,) = nodes.exchange(channel, pack("PUBLISH", channel, ""), 1)
                if isinstance(reply, ServerError):
                    raise reply
            elif message and message["type"] == "message":
                return time.monotonic() - began
    return None
