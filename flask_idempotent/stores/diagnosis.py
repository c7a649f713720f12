"""Is a store fit for its work? Each finding is one line for an operator, with the remedy."""

from __future__ import annotations

from typing import Any

from ..core.store import Store
from .findings import Finding, Level
from .memory import MemoryStore
from .trial import try_out


def tiers(store: Store) -> list[tuple[str, Store]]:
    """The places that a store keeps records in, the one with the last word first, each with its name."""
    if isinstance(store, MemoryStore):
        return [("the memory of this process", store)]
    from .redis import RedisStore
    from .tiered import TieredStore

    if isinstance(store, TieredStore):
        return [*tiers(store._shared), *tiers(store._local)]
    if isinstance(store, RedisStore):
        return [(f"Redis {store.nodes.name}", store)]
    return [(f"this host, {path}" if (path := _path(store)) else "this host", store)]


def milliseconds_left(tier: Store, key: str) -> int:
    """For how long one tier still keeps a key; 0 where nothing stands.

    :raises StoreError: it cannot be asked.
    """
    local: Any = tier
    if hasattr(local, "left"):
        return int(local.left(key))
    taken = local.take(key)
    return taken[1] if taken else 0


def diagnose(store: Store, prefix: str) -> list[Finding]:
    """Examine a store. Takes no longer than a few of its timeouts, and leaves nothing behind.

    :param prefix: what all keys of the app begin with.
    """
    names = [name for name, _ in tiers(store)]
    found = [Finding("store", Level.OK, ", and before it ".join(names))]
    if isinstance(store, MemoryStore):
        return [*found, try_out("trial", store, prefix)]
    from .checks import examine
    from .redis import RedisStore
    from .tiered import TieredStore

    if isinstance(store, TieredStore):
        return [*found, *examine(store._shared, prefix), *_local_tier(store._local, prefix)]
    if isinstance(store, RedisStore):
        return [*found, *examine(store, prefix), Finding("local tier", Level.OK, "none: Redis decides alone")]
    return [*found, try_out("trial", store, prefix)]


def _local_tier(local: Store, prefix: str) -> list[Finding]:
    tried = try_out("local tier", local, prefix)
    if tried.level is Level.FAILURE:
        return [tried]
    if isinstance(local, MemoryStore):
        text = (
            "each process has one of its own; while Redis is away, workers do not know of each other, and a retry that "
            "reaches another one may run again"
        )
        return [Finding("local tier", Level.NOTE, text)]
    return [Finding("local tier", Level.OK, f"one for all workers of this host, in {_path(local) or 'one file'}")]


def _path(store: Any) -> str:
    path = getattr(store, "path", None)
    return "" if path is None else str(path)
