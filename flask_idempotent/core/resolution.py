"""An operator's word on a request whose worker died: it is taken over like any dead worker's claim, and settled.

Likewise one that failed in a step, since nobody knows whether the step was done.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import head_of
from .record import MAX_ATTEMPT, Head, NewerRecord, State, StoredResponse, UnreadableRecord, pack_payload, read_head
from .steps import is_interrupted, journal_key, without_interrupted
from .store import Claim, Found, OnOutage, Store, Terms


class NotResolvable(Exception):
    """The request is not one whose worker died; the message says what it is, and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """With what a request counts as done.

    :param response: what its duplicates get from now on.
    :param ttl_ms: for how long.
    :param compress_over: bytes from which compression is tried.
    """

    response: StoredResponse
    ttl_ms: int
    compress_over: int


def interrupted(found: Found, journal: bytes | None = None) -> Head:
    """The head of a record whose worker died, or that failed in a step.

    :param journal: of its steps.
    :raises NotResolvable: it is another kind of record.
    """
    try:
        head = read_head(found.record)
    except NewerRecord as error:
        raise NotResolvable(f"{error}: use the version of this library that the workers have") from error
    except UnreadableRecord as error:
        raise NotResolvable("what stands there is no record of a request") from error
    left = head.deadline - found.now_ms
    if head.state is State.DONE:
        raise NotResolvable("the request is done, and its answer is replayed; there is nothing to resolve")
    if head.state is State.FAILED and is_interrupted(journal or b""):
        return head
    if head.state is State.FAILED:
        raise NotResolvable("the request has failed; it runs again when the client repeats it, as it is")
    if left > 0:
        raise NotResolvable(
            f"the request is running, as far as can be told: its lease lasts for another {left / 1000:.1f} s. Wait "
            "until it has ended, or its worker has failed to renew the lease"
        )
    return head


def resolve(store: Store, key: str, found: Found, token: bytes, terms: Terms, answer: Answer | None) -> None:
    """Settle a request whose worker died.

    The claim is taken over first, which the store grants for a dead worker's alone: one that comes to life meanwhile
    keeps its key or loses it, and never shares it.

    :param found: what stands under the key.
    :param token: 16 random bytes.
    :param terms: the lease and the retention of the claim until it is settled.
    :param answer: with what the request is done; None: it never happened, and the key is free again. Of a request that
        failed, the step that did not end never happened: the request runs again when it is repeated, without the steps
        that are done.
    :raises NotResolvable: the request is not one whose worker died, or not any more.
    :raises UnstorableResponse: the answer is not what HTTP can send; nothing has changed.
    :raises StoreError: the store cannot be asked.
    """
    journal = store.get(journal_key(key))
    head = interrupted(found, journal)
    terms = terms._replace(resume=True, wait_ms=0, on_outage=OnOutage.REJECT)
    claim = Claim(key, token, head.fingerprint, terms)
    ours = claim._replace(attempt=head.attempt)
    done = None if answer is None else pack_payload(head_of(ours, State.DONE), answer.response, answer.compress_over)
    granted = store.claim(claim)
    if isinstance(granted, Found):
        interrupted(granted, journal)
        raise NotResolvable("another request has the key since")
    if granted.attempt != min(head.attempt + 1, MAX_ATTEMPT):  # it was not the dead worker's any more
        store.forget(claim)
        raise NotResolvable("the record has changed or expired since it was looked at; look again")
    if answer is not None and done is not None:
        settled = store.complete(ours, done, answer.ttl_ms)
    elif head.state is State.FAILED:
        store.set(journal_key(key), without_interrupted(journal or b""), terms.ttl_ms)
        settled = store.fail(ours)
    else:
        store.delete(journal_key(key))  # whoever comes next under the key has done no step of its own
        settled = store.forget(ours)
    if not settled:
        raise NotResolvable("another request has taken the key since")
