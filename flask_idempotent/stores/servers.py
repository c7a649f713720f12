"""What Redis servers say of themselves, and what of it is dangerous for records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .failures import ERRORS, store_error
from .nodes import Nodes
from .wire import pack

UNKNOWN: Final = "unknown"
SAFE_POLICY: Final = "noeviction"
EVICTION, PERSISTENCE, ROLE = "eviction", "persistence", "role"
_SILENT: Final = "for it does not answer that question"


@dataclass(frozen=True, slots=True)
class Server:
    """One server. What it does not tell is ``"unknown"``.

    :param name: where it is.
    :param version: of the server, such as ``"7.0.15"``; for Valkey that of the Redis whose commands it has.
    :param product: ``"Redis 7.0.15"`` or ``"Valkey 8.0.1"``.
    :param policy: its ``maxmemory-policy``.
    :param persistence: ``"aof"``, ``"rdb"``, ``"aof+rdb"`` or ``"none"``.
    :param role: ``"master"`` or ``"slave"``, as the server calls it.
    :param replicas: number of replicas that are connected to it; None when unknown.
    """

    name: str
    version: str = UNKNOWN
    product: str = UNKNOWN
    policy: str = UNKNOWN
    persistence: str = UNKNOWN
    role: str = UNKNOWN
    replicas: int | None = None

    def dangers(self) -> dict[str, str]:
        """What may lose records, by what it is about: a sentence each with the remedy, without any address."""
        found = {}
        if self.policy not in (SAFE_POLICY, UNKNOWN):
            found[EVICTION] = f"Redis evicts records ({self.policy}); set maxmemory-policy noeviction"
        if self.persistence == "none":
            found[PERSISTENCE] = "Redis keeps nothing over a restart; set appendonly yes"
        if self.role == "slave":
            found[ROLE] = "this Redis is a replica and takes no writes; name the master, or use Sentinel"
        return found

    def unknowns(self) -> dict[str, str]:
        """What may lose records for all that the server tells, likewise."""
        found = {}
        if self.policy == UNKNOWN:
            found[EVICTION] = f"unknown whether Redis evicts records, {_SILENT}; see to maxmemory-policy noeviction"
        if self.persistence == UNKNOWN:
            found[PERSISTENCE] = f"unknown whether Redis keeps records over a restart, {_SILENT}; see to appendonly yes"
        if self.role == UNKNOWN:
            found[ROLE] = f"unknown whether this Redis is the master, {_SILENT}; see to it that it takes writes"
        return found


def run_ids(nodes: Nodes) -> str | None:
    """The servers that take writes, each with the id that it got when it started; None where INFO is forbidden.

    :raises StoreError: they do not answer.
    """
    # As requests do, this waits for a connection: one more each time would be a new one to ask about.
    told = _ask(nodes, pack("INFO", "server"), 1, urgent=False)
    ids = {name: _info(replies[0]).get("run_id") for name, replies in told.items()}
    return None if None in ids.values() else " ".join(f"{name}={run_id}" for name, run_id in sorted(ids.items()))


def look(nodes: Nodes) -> list[Server]:
    """What the servers say of themselves.

    :raises StoreError: they do not answer.
    """
    return [_server(name, *map(_info, replies)) for name, replies in _ask(nodes, _QUESTIONS, 5).items()]


_QUESTIONS: Final = b"".join(
    [*(pack("INFO", section) for section in ("server", "memory", "persistence", "replication")),
     pack("CONFIG", "GET", "save")]
)  # fmt: skip


def _ask(nodes: Nodes, questions: bytes, count: int, *, urgent: bool = True) -> Mapping[str, list[object]]:
    try:
        return nodes.each(questions, count, urgent=urgent)
    except ERRORS as error:
        raise store_error(error) from error


def _server(
    name: str,
    server: Mapping[str, str],
    memory: Mapping[str, str],
    persistence: Mapping[str, str],
    replication: Mapping[str, str],
    save: Mapping[str, str],
) -> Server:
    replicas = replication.get("connected_slaves")
    return Server(
        name,
        version=server.get("redis_version", UNKNOWN),
        product=_product(server),
        policy=memory.get("maxmemory_policy", UNKNOWN),
        persistence=_persistence(persistence.get("aof_enabled"), save.get("save")),
        role=replication.get("role", UNKNOWN),
        replicas=None if replicas is None else int(replicas),
    )


def _product(server: Mapping[str, str]) -> str:
    for name in ("valkey", "redis"):
        if version := server.get(f"{name}_version"):
            return f"{name.capitalize()} {version}"
    return UNKNOWN


def _persistence(aof_enabled: str | None, save: str | None) -> str:
    ways = [*(["aof"] if aof_enabled == "1" else []), *(["rdb"] if save else [])]
    if ways:
        return "+".join(ways)
    return UNKNOWN if aof_enabled is None or save is None else "none"


def _info(reply: object) -> dict[str, str]:
    """The lines of INFO, or the pairs of CONFIG GET, by name; nothing where the question is forbidden."""
    if isinstance(reply, list):
        texts = [each.decode("utf-8", "replace") for each in reply]
        return dict(zip(texts[::2], texts[1::2], strict=False))
    if not isinstance(reply, bytes):
        return {}
    lines = (line.partition(":") for line in reply.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
