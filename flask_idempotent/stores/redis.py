"""Records in Redis: every operation is one Lua script over one key, judged by the server's clock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from queue import Empty, LifoQueue
from typing import Any, Final, cast

from redis import BlockingConnectionPool, Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..core.machine import Standing, standing
from ..core.record import DEADLINE_SIZE, HEAD_SIZE, Head, State, read_head
from ..core.store import Claim, Claimed, Found, Gone, Report, StoreError, StoreFull, TimedOut
from . import scripts
from .wakeups import Wakeups

POOL_SIZE: Final = 32
LISTEN_SECONDS: Final = 0.5  # for a subscription to stand before the record is read without it
# What a lent or a configured client may pass on to ours; the rest (timeouts, retries, caches, notification handlers) is
# for this store to decide.
_INHERITED: Final = frozenset(
    "host port db username password credential_provider path client_name socket_keepalive socket_keepalive_options"
    " socket_type ssl_keyfile ssl_certfile ssl_cert_reqs ssl_ca_certs ssl_ca_data ssl_ca_path ssl_check_hostname"
    " ssl_password ssl_validate_ocsp ssl_validate_ocsp_stapled ssl_ocsp_context ssl_ocsp_expected_cert"
    " ssl_min_version ssl_ciphers ssl_include_verify_flags ssl_exclude_verify_flags".split()
)
_OUTAGES: Final = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)
_UNWRITABLE: Final = ("MISCONF", "NOREPLICAS", "BUSY ", "MASTERDOWN", "CLUSTERDOWN")  # not all have a class everywhere
_NO_OUTAGES: Final = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.MaxConnectionsError)


class Restored(IntEnum):
    """What came of writing a record back after an outage."""

    WRITTEN = 1
    PENDING_ELSEWHERE = 2
    DONE_ELSEWHERE = 3


def uses_tls(client: Redis) -> bool:
    """Whether a client's connections are encrypted."""
    return "SSL" in client.connection_pool.connection_class.__name__


def own_client(lent: Redis, timeout: float) -> Redis:
    """A client of our own to the same server, with a small time budget. Opens no connection.

    RESP2 keeps redis-py's check for unread replies on pooled connections, which its RESP3 default skips. A command that
    timed out is not repeated by the client: the scripts are idempotent, and the caller knows what an outage means.

    :param lent: the client whose address, credentials and TLS settings count.
    :param timeout: seconds for a connection, and for a reply.
    """
    pool = lent.connection_pool
    settings = {name: value for name, value in pool.connection_kwargs.items() if name in _INHERITED}
    return Redis(
        connection_pool=BlockingConnectionPool(  # type: ignore[no-untyped-call]
            connection_class=pool.connection_class,
            max_connections=POOL_SIZE,
            timeout=max(timeout, 1.0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            **settings,
        )
    )


class RedisStore:
    """A store shared by all workers that reach the same Redis.

    :param client: from :func:`own_client`.
    :param alone: whether no other tier remembers an outcome that this one could not be told; then it is told twice.
    """

    def __init__(self, client: Redis, *, alone: bool = False) -> None:
        self._client = client
        self._alone = alone
        self._wakeups = Wakeups(client)
        self._scripts = {name: client.register_script(text) for name, text in scripts.TEXTS.items()}

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip."""
        terms = claim.terms
        now, record = self._read(
            "claim", claim.key, claim.owner, claim.fingerprint, terms.lease_ms, terms.ttl_ms, int(terms.resume)
        )
        if record is None:
            raise StoreError("Redis answered nothing to a claim")
        if standing(record, claim, now) is Standing.OWN:
            return Claimed(read_head(record).attempt)
        return Found(record, now)

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`. One pipeline for all."""
        with _translated(), self._client.pipeline(transaction=False) as pipeline:
            for claim in claims:
                terms = claim.terms
                args = (claim.owner, _head(State.PENDING, claim), terms.lease_ms, terms.ttl_ms)
                self._scripts["renew"](keys=[claim.key], args=args, client=pipeline)
            answers = pipeline.execute(raise_on_error=False)
            for answer in answers:  # raised by the pipeline, they would quote the command with its tokens
                if isinstance(answer, Exception):
                    raise answer
            return [bool(kept) for kept in answers]

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. One round trip."""
        args = (claim.key, claim.owner, _head(State.DONE, claim), payload, ttl_ms)
        try:
            return bool(self._run("complete", *args))
        except StoreError as error:
            if not (self._alone and error.outage):
                raise
        return bool(self._run("complete", *args))

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return bool(self._run("fail", claim.key, claim.owner, _head(State.FAILED, claim), claim.terms.ttl_ms))

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return bool(self._run("forget", claim.key, claim.owner))

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. Listens first, then reads, so that no change is missed."""
        deadline = time.monotonic() + timeout_ms / 1000
        with self._wakeups.listening(key, min(timeout_ms / 1000, LISTEN_SECONDS)) as ear:
            while True:
                now, record = self._read("peek", key)
                if record is None:
                    return Gone()
                if record[1:2] != State.PENDING.value:
                    return Found(record, now)
                left = deadline - time.monotonic()
                if left <= 0:
                    return TimedOut()
                ear.wait(left)

    def restore(self, key: str, record: bytes, ttl_ms: int, lease_ms: int) -> Restored:
        """Write back what this process decided while Redis was away.

        :param record: the whole record, ours.
        :param ttl_ms: what is left of its retention.
        :param lease_ms: for a pending one, the lease that it gets.
        """
        head = read_head(record)
        left = {State.PENDING: lease_ms, State.DONE: ttl_ms}.get(head.state, 0)
        body = (record[: HEAD_SIZE - DEADLINE_SIZE], left, record[HEAD_SIZE:], max(ttl_ms, left, 1))
        return Restored(self._run("restore", key, head.owner, head.fingerprint, *body))

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with _translated():
            value = self._client.get(key)
        return cast(bytes | None, value)

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with _translated():
            self._client.set(key, value, px=ttl_ms)

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        with _translated():
            return bool(self._client.delete(key))

    def ping(self) -> None:
        """Ask the server for a sign of life.

        :raises StoreError: there was none within the time budget.
        """
        with _translated():
            self._client.ping()

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`."""
        try:
            self.ping()
        except StoreError as error:
            return Report(cache_type="redis", outage=str(error), refused=not error.outage)
        return Report(cache_type="redis", redis_available=True)

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._wakeups.close()
        idle: LifoQueue[Any] = self._client.connection_pool.pool  # type: ignore[attr-defined]
        taken = []
        with suppress(Empty):
            while True:  # taken out first, so that no request gets one that is about to be closed
                taken.append(idle.get_nowait())
        for connection in taken:
            if connection is not None:
                connection.disconnect()
            idle.put_nowait(connection)

    def _run(self, name: str, key: str, *args: bytes | int) -> Any:
        with _translated():
            return self._scripts[name](keys=[key], args=args)

    def _read(self, name: str, key: str, *args: bytes | int) -> tuple[int, bytes | None]:
        """Run a script that answers the server's clock and the record in one string, or nil where there is none."""
        answer = self._run(name, key, *args)
        return (0, None) if answer is None else (int(answer[:DEADLINE_SIZE]), answer[DEADLINE_SIZE:])


def _head(state: State, claim: Claim) -> bytes:
    """A head without its deadline, which the script adds by the server's clock."""
    head = Head(state, claim.attempt, claim.owner, claim.fingerprint, 0)
    return head.pack()[: HEAD_SIZE - DEADLINE_SIZE]


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the client's errors into the one error that the guard knows."""
    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise StoreFull(f"Redis is full: {error}") from error
    except _NO_OUTAGES as error:
        raise StoreError(f"Redis refuses this client: {error}") from error
    except _OUTAGES as error:
        if isinstance(error.__context__, Empty):  # how the blocking pool says that all connections are in use
            raise StoreError("all connections to Redis are in use") from error
        raise StoreError(f"Redis is away: {error}", outage=True) from error
    except exceptions.RedisError as error:
        raise StoreError(f"Redis answered: {error}", outage=str(error).startswith(_UNWRITABLE)) from error
