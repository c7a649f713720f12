"""What the health endpoint reports."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from .core.store import OnOutage, Report
from .state import AppState

HEALTHY: Final = "healthy"
DEGRADED: Final = "degraded"
UNHEALTHY: Final = "unhealthy"


def stats(report: Report) -> dict[str, Any]:
    """The numbers of a store's report, by their public names."""
    return {
        "isRedisAvailable": report.redis_available,
        "inMemoryCacheSize": report.in_memory_size,
        "cacheType": report.cache_type,
    }


def check(state: AppState) -> dict[str, Any]:
    """Ask the store how it is.

    :return: ``status``, ``message`` and ``stats``. *Degraded* means that new requests still run, without the agreement
        of other workers; *unhealthy* that they are refused. Beside these ``since``, when the outage began (ISO 8601,
        UTC) or None; ``waiting``, the number of records that will be written to Redis when it is back; ``breaker``,
        ``"open"``, ``"closed"`` or None; and ``warnings``, what may lose records, a sentence each with the remedy.
    """
    report = state.store.report()
    if report.outage is None and state.guard.is_full:
        status, message = UNHEALTHY, "The store is full; new requests with a key are refused. See the log."
    elif report.outage is None:
        here = "the memory of this host" if report.host_wide else "the memory of this process"
        where = "Redis" if report.redis_available else here
        status, message = HEALTHY, f"Outcomes are kept in {where}."
    elif report.refused:
        status, message = UNHEALTHY, "Redis refuses this client; new requests with a key are refused. See the log."
    elif state.settings.on_outage is OnOutage.REJECT:
        status, message = UNHEALTHY, "Redis cannot be used, and new requests with a key are refused until it can."
    elif state.settings.on_outage is OnOutage.EXECUTE:
        status, message = DEGRADED, "Redis cannot be used; new requests run without protection until it can."
    else:
        who = "this host" if report.host_wide else "this process"
        status, message = DEGRADED, f"Redis cannot be used; {who} keeps its own records until it can."
    since = None if report.outage is None else report.since
    return {
        "status": status,
        "message": message,
        "stats": stats(report),
        "since": None if since is None else datetime.fromtimestamp(since, UTC).isoformat(),
        "waiting": report.waiting,
        "breaker": report.breaker,
        "warnings": list(report.warnings),
    }
