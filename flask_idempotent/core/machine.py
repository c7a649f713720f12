"""The rules of a key, as tables.

What stands under a key, as one request sees it, is its *standing*; what the request wants to do is its *event*. The
in-process stores call :func:`transition`; the Lua scripts of the Redis store follow the same table, and the contract
suite of the stores holds all of them to it.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from .record import (
    MAX_ATTEMPT,
    Head,
    NewerRecord,
    State,
    StoredResponse,
    UnreadableRecord,
    pack_deadline,
    read_head,
    read_response,
    undated_head,
)
from .store import Claim, Found, Sign


class Standing(Enum):
    """What stands under a key from one request's point of view."""

    __hash__ = object.__hash__  # the members are looked up in the table; Enum's own hash is a slow one

    ABSENT = auto()  # never seen, expired or forgotten
    OWN = auto()  # pending under this request's own token
    OWN_FAILED = auto()  # failed by this request: the reply to the first try was lost
    OWN_DONE = auto()  # completed by this request: likewise
    RUNNING = auto()  # pending under another token, its lease alive
    LAPSED = auto()  # pending under another token, its lease over: that worker counts as dead
    FAILED = auto()  # an earlier attempt failed: something may have happened
    DONE = auto()  # an outcome is stored
    FOREIGN = auto()  # it belongs to another request (other fingerprint), whatever its state
    UNREADABLE = auto()  # damaged, or written by a later version


class Event(Enum):
    """What a request wants to do with its key."""

    __hash__ = object.__hash__

    CLAIM = auto()
    RENEW = auto()
    COMPLETE = auto()
    FAIL = auto()
    FORGET = auto()


class Effect(Enum):
    """What becomes of the record."""

    PENDING = auto()
    DONE = auto()
    FAILED = auto()
    DELETED = auto()
    KEPT = auto()  # nothing to write: the request already has what it wants
    REFUSED = auto()  # nothing is written: it belongs to somebody else


# A claim begins where nothing stands, where an attempt failed, and where a worker died unless the route refuses to
# guess. Every other write needs the request's own token or an absent record: a server that lost the record (frozen
# past its expiry, restarted empty) must not turn a finished view into a conflict. Repeating an applied write succeeds.
# fmt: off
_P, _D, _F = Effect.PENDING, Effect.DONE, Effect.FAILED
_X, _K, __ = Effect.DELETED, Effect.KEPT, Effect.REFUSED
_ROWS = {                 # CLAIM RENEW COMPLETE FAIL FORGET
    Standing.ABSENT:       (_P,   _P,   _D,      _F,  _K),
    Standing.OWN:          (_K,   _P,   _D,      _F,  _X),
    Standing.OWN_FAILED:   (__,   _K,   __,      _K,  __),
    Standing.OWN_DONE:     (__,   _K,   _K,      __,  __),
    Standing.RUNNING:      (__,   __,   __,      __,  __),
    Standing.LAPSED:       (_P,   __,   __,      __,  __),
    Standing.FAILED:       (_P,   __,   __,      __,  __),
    Standing.DONE:         (__,   __,   __,      __,  __),
    Standing.FOREIGN:      (__,   __,   __,      __,  __),
    Standing.UNREADABLE:   (__,   __,   __,      __,  __),
}
# fmt: on
TRANSITIONS: Final[dict[tuple[Standing, Event], Effect]] = {
    (standing, event): effect for standing, row in _ROWS.items() for event, effect in zip(Event, row, strict=True)
}

_OWN: Final = {State.PENDING: Standing.OWN, State.FAILED: Standing.OWN_FAILED, State.DONE: Standing.OWN_DONE}


class Change(NamedTuple):
    """The result of a transition.

    :param effect: what becomes of the record.
    :param record: the bytes to write for PENDING, DONE and FAILED; what stands for KEPT and REFUSED.
    :param expires: when the record is dropped, milliseconds by the store's clock; 0 where nothing is written.
    """

    effect: Effect
    record: bytes
    expires: int = 0


class Replay(NamedTuple):
    """The request is done: give this answer again."""

    response: StoredResponse


class Busy(Sign):
    """The request is running elsewhere."""


class Mismatch(Sign):
    """The key belongs to another request."""


class Unknown(Sign):
    """The worker died and the route refuses to guess what it did."""


Verdict = Replay | Busy | Mismatch | Unknown


def standing(record: bytes | None, claim: Claim, now: int) -> Standing:
    """Where ``claim`` stands towards a record, at ``now`` by the store's clock in milliseconds."""
    if record is None:
        return Standing.ABSENT
    try:
        head = read_head(record)
    except (NewerRecord, UnreadableRecord):
        return Standing.UNREADABLE
    if head.owner == claim.owner:
        return _OWN[head.state]
    if head.fingerprint != claim.fingerprint:
        return Standing.FOREIGN
    if head.state is State.PENDING:
        return Standing.LAPSED if head.deadline <= now else Standing.RUNNING
    return Standing.FAILED if head.state is State.FAILED else Standing.DONE


def transition(
    event: Event,
    record: bytes | None,
    expires: int,
    claim: Claim,
    now: int,
    *,
    payload: bytes = b"",
    ttl_ms: int | None = None,
) -> Change:
    """Apply an event of ``claim`` to what stands under its key. Pure; the caller holds the lock and writes.

    :param record: the bytes that stand there and have not expired, or None.
    :param expires: when those are dropped, milliseconds; ignored for None.
    :param now: the store's clock, milliseconds since the epoch.
    :param payload: for COMPLETE, the packed response.
    :param ttl_ms: for COMPLETE, its retention; otherwise the claim's own.
    """
    where = standing(record, claim, now)
    effect = TRANSITIONS[where, event]
    if where is Standing.LAPSED and not claim.terms.resume:
        effect = Effect.REFUSED
    ttl = claim.terms.ttl_ms if ttl_ms is None else ttl_ms
    lease_end, retained = now + claim.terms.lease_ms, now + ttl
    if effect is Effect.PENDING:
        if record is None:
            return Change(effect, *begun(claim, now))
        attempt, kept_until = claim.attempt, expires
        if event is Event.CLAIM:
            attempt, kept_until = min(read_head(record).attempt + 1, MAX_ATTEMPT), retained
        head = Head(State.PENDING, attempt, claim.owner, claim.fingerprint, lease_end)
        return Change(effect, head.pack(), max(lease_end, kept_until))
    if effect is Effect.FAILED:
        head = Head(State.FAILED, claim.attempt, claim.owner, claim.fingerprint, now)
        return Change(effect, head.pack(), retained if record is None else expires)
    if effect is Effect.DONE:
        return Change(effect, *ended(claim, payload, now, ttl))
    return Change(effect, record or b"")


def begun(claim: Claim, now: int) -> tuple[bytes, int]:
    """The record of a claim for a key under which nothing stands, and when it expires: the commonest transition."""
    lease_end = now + claim.terms.lease_ms
    return head_of(claim, State.PENDING) + pack_deadline(lease_end), max(lease_end, now + claim.terms.ttl_ms)


def ended(claim: Claim, payload: bytes, now: int, ttl_ms: int) -> tuple[bytes, int]:
    """The record that COMPLETE makes of a claim's own pending one, and when it expires: the next commonest."""
    deadline = now + ttl_ms
    return head_of(claim, State.DONE) + pack_deadline(deadline) + payload, deadline


def head_of(claim: Claim, state: State) -> bytes:
    """What a claim's record in some state begins with, up to its deadline."""
    return undated_head(state, claim.attempt, claim.owner, claim.fingerprint)


def judge(found: Found, claim: Claim) -> Verdict:
    """What to answer a request that did not get its key.

    :raises NewerRecord: a later version of the library wrote the record.
    :raises UnreadableRecord: it is damaged; the view must not run.
    """
    where = standing(found.record, claim, found.now_ms)
    if where is Standing.FOREIGN:
        return Mismatch()
    if where is Standing.DONE:
        return Replay(read_response(found.record))
    if where is Standing.LAPSED and not claim.terms.resume:
        return Unknown()
    read_head(found.record)
    return Busy()
