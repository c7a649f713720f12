"""What the errors of a Redis server and of its client mean to the guard: an outage, or something else."""

from __future__ import annotations

from typing import Final

from redis import exceptions

from ..core.store import StoreError, StoreFull
from .pool import Exhausted
from .wire import ServerError

# The server is there, and cannot take a write now: it loads, fails over, lacks replicas or cannot reach its disk.
_AWAY: Final = frozenset(
    "LOADING READONLY MASTERDOWN CLUSTERDOWN TRYAGAIN MOVED ASK MISCONF NOREPLICAS BUSY UNBLOCKED".split()
)
_REFUSED: Final = frozenset("NOAUTH WRONGPASS NOPERM".split())
ERRORS: Final = (exceptions.RedisError, OSError, ServerError, Exhausted)


def store_error(error: Exception) -> StoreError:
    """The guard's error for one of :data:`ERRORS`. A full pool, a full server or a wrong password is no outage."""
    if isinstance(error, ServerError):
        return _answered(error)
    if isinstance(error, Exhausted):
        return StoreError(f"{error}")
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return StoreError(f"Redis refuses this client: {error}")
    if isinstance(error, exceptions.ResponseError):  # while connecting
        return _answered(ServerError(str(error)))
    return StoreError(f"Redis is away: {error}", outage=True)


def _answered(error: ServerError) -> StoreError:
    if error.code == "OOM":
        return StoreFull(f"Redis is full: {error}")
    if error.code in _REFUSED or "invalid username-password" in error.detail:
        return StoreError(f"Redis refuses this client: {error}")
    return StoreError(f"Redis answered: {error}", outage=error.code in _AWAY)
