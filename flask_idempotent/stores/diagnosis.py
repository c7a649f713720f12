"""Is a store fit for its work? Each finding is one line for an operator, with the remedy."""

from __future__ import annotations

from typing import Any

from ..core.store import Store
from .absent import NoTier
from .findings import Finding, Level
from .local import LocalStore
from .memory import MemoryStore
from .trial import try_out


def tiers(store: Store) -> list[tuple[str, Store]]:
    """The places that a store keeps records in, the one with the last word first, each with its name."""
    if isinstance(store, MemoryStore):
        return [("the memory of this process", store)]
    if isinstance(store, LocalStore):
        return [(f"this host, in {_path(store)}", store)]
    if isinstance(store, NoTier):
        return []
    from .redis import RedisStore
    from .tiered import TieredStore

    if isinstance(store, RedisStore):
        return [(f"Redis {store.nodes.name}", store)]
    if isinstance(store, TieredStore):
        return [*tiers(store._shared), *tiers(store._local)]
    raise TypeError(f"{type(store).__name__} is not a store of this package")


def milliseconds_left(tier: Store, key: str) -> int:
    """For how long one of :func:`tiers` still keeps a key; 0 where nothing stands.

    :raises StoreError: it cannot be asked.
    """
    if isinstance(tier, LocalStore):
        taken = tier.take(key)
        return taken[1] if taken else 0
    there: Any = tier
    return int(there.left(key))


def diagnose(store: Store, prefix: str) -> list[Finding]:
    """Examine a store. Takes no longer than a few of its timeouts, and leaves nothing behind.

    :param prefix: what all keys of the app begin with.
    """
    found = [Finding("store", Level.OK, ", and before it ".join(name for name, _ in tiers(store)))]
    if isinstance(store, LocalStore):
        return [*found, try_out("trial", store, prefix)]
    from .checks import examine
    from .redis import RedisStore
    from .tiered import TieredStore

    if isinstance(store, TieredStore):
        return [*found, *examine(store._shared, prefix), _local_tier(store._local, prefix)]
    if isinstance(store, RedisStore):
        return [*found, *examine(store, prefix)]
    raise TypeError(f"{type(store).__name__} is not a store of this package")


def _local_tier(local: Store, prefix: str) -> Finding:
    if isinstance(local, NoTier):
        return Finding("local tier", Level.OK, "none: Redis decides alone")
    tried = try_out("local tier", local, prefix)
    if tried.level is Level.FAILURE:
        return tried
    if isinstance(local, MemoryStore):
        text = (
            "each process has one of its own; while Redis is away, workers do not know of each other, and a retry that "
            "reaches another one may run again. Set IDEMPOTENCY_LOCAL_TIER to 'shared' where they share a host"
        )
        return Finding("local tier", Level.NOTE, text)
    return Finding("local tier", Level.OK, f"one for all workers of this host, in {_path(local)}")


def _path(store: Any) -> str:
    return str(getattr(store, "path", "a file"))
