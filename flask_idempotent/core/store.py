"""What a store is: the protocol that memory, Redis and the tiers fulfil, and the values it speaks in."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

TAKEOVER_MS: Final = 500  # after a lease, for somebody to take over before those who wait are told that nobody runs


class StoreError(Exception):
    """The store cannot answer.

    :param outage: whether the server is away (lost, loading, failing over). Then the route's policy decides. A full
        pool, a full store or a wrong password is no outage: another tier must not paper over it.
    """

    def __init__(self, message: str, *, outage: bool = False) -> None:
        super().__init__(message)
        self.outage = outage


class StoreFull(StoreError):
    """The store has no room for a new key, and never drops a live one to make some."""


class OnOutage(StrEnum):
    """What happens to new keys while the shared store is away."""

    LOCAL = "local"
    REJECT = "reject"
    EXECUTE = "execute"


class Terms(NamedTuple):
    """The conditions under which a route claims its keys. Times are in milliseconds.

    :param lease_ms: how long a worker may be silent before it counts as dead.
    :param ttl_ms: retention of the record.
    :param wait_ms: how long a duplicate waits for the outcome of a running request.
    :param max_runtime_ms: how long the heartbeat renews the lease of one request.
    :param resume: whether the same request runs again after its worker died.
    :param on_outage: what happens while the shared store is away.
    """

    lease_ms: int
    ttl_ms: int
    wait_ms: int = 0
    max_runtime_ms: int = 3_600_000
    resume: bool = True
    on_outage: OnOutage = OnOutage.LOCAL


class Claim(NamedTuple):
    """One request's hold on one key, asked for or had.

    :param key: the storage key, already hashed.
    :param owner: 16 random bytes, new for each claim.
    :param fingerprint: 32 bytes, the digest of the request.
    :param terms: the route's conditions.
    :param attempt: how often this request has been started, this time included.
    """

    key: str
    owner: bytes
    fingerprint: bytes
    terms: Terms
    attempt: int = 1


class Claimed(NamedTuple):
    """The key is held by the caller.

    :param attempt: 1, or more when an earlier attempt failed or died.
    """

    attempt: int


FIRST: Final = Claimed(1)


class Found(NamedTuple):
    """Something else stands under the key.

    :param record: its bytes.
    :param now_ms: the store's clock when it was read, milliseconds since the epoch.
    """

    record: bytes
    now_ms: int


class Sign:
    """A value that says all by its class: two of one class are equal. (A dataclass would say it, and be made at import
    at ten times the cost.)
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Gone(Sign):
    """Nothing stands under the key."""


class TimedOut(Sign):
    """The wait ended before the request did."""


class Report(NamedTuple):
    """How a store is doing.

    :param cache_type: ``"redis"`` or ``"memory"``: which of the two decides about new keys at this moment.
    :param host_wide: whether the records that are held here are those of all workers of the host, not of this process.
    :param redis_available: whether Redis answers; False where none is configured.
    :param in_memory_size: number of live records held here.
    :param outage: why the configured Redis cannot be used, for an operator; None when all is well.
    :param refused: Redis is there but refuses this client, so that requests with a key are refused, too.
    :param waiting: number of records that will be written to Redis when it is back.
    :param since: when the outage began, seconds since the epoch; None without one.
    :param breaker: ``"open"`` while Redis is not asked, else ``"closed"``; None where there is no breaker.
    :param warnings: what may lose records, a sentence each with the remedy.
    """

    cache_type: str
    host_wide: bool = False
    redis_available: bool = False
    in_memory_size: int = 0
    outage: str | None = None
    refused: bool = False
    waiting: int = 0
    since: float | None = None
    breaker: str | None = None
    warnings: tuple[str, ...] = ()


class Store(Protocol):
    """A place for records. Every method is one atomic operation, or raises :class:`StoreError`."""

    def claim(self, claim: Claim) -> Claimed | Found:
        """Take the key, or tell what stands there. Asking again with the same token is success."""

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """Extend the leases. False where another token stands; an absent record is put back."""

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """Store the outcome for ``ttl_ms``. False only where another token stands."""

    def fail(self, claim: Claim) -> bool:
        """Note that the attempt failed: the same request may run again, another may not."""

    def forget(self, claim: Claim) -> bool:
        """Delete the claim: the request was refused before it did anything."""

    def begin_step(self, claim: Claim, name: bytes, intent: bytes) -> bytes | None:
        """Renew the lease, and note that a step is about to run, unless the journal has it already.

        :param name: the 16 bytes that every entry of the step begins with.
        :param intent: the entry to append where none begins so.
        :return: the journal as it was before; None where another token stands.
        """

    def end_step(self, claim: Claim, result: bytes) -> bool:
        """Append the entry with a step's result. False where another token stands."""

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """Wait until no worker holds the key any more: its request has ended, or its lease and nobody took over."""

    def peek(self, key: str) -> Found | None:
        """The record under a key with the store's clock, or None."""

    def get(self, key: str) -> bytes | None:
        """The bytes under a key, or None."""

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """Put bytes under a key for ``ttl_ms``, whatever stands there."""

    def delete(self, key: str) -> bool:
        """Remove a key; whether it was there."""

    def report(self) -> Report:
        """Ask the servers, within the store's timeout, and tell how things are. Never raises."""

    def close(self) -> None:
        """Give back connections and threads. The store can be used again."""
