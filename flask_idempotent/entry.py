"""The way in, for a request and for a call outside of one: the claim, and the guard's refusals as exceptions."""

from __future__ import annotations

import logging
from typing import Final

from . import errors
from .config import Settings
from .core.digest import combine
from .core.guard import Guard, Unprotected
from .core.machine import Mismatch, Replay, Unknown
from .core.record import NewerRecord, UnreadableRecord
from .core.store import Claim, StoreError

log = logging.getLogger("flask_idempotent")

RETRY_AFTER: Final = 1  # seconds
_ANSWERS: Final = (Claim, Replay, Unprotected)


def begin(guard: Guard, key: str, fingerprint: bytes, settings: Settings) -> Claim | Unprotected | Replay:
    """Take a key, or say why nothing is to run.

    :param key: the storage key.
    :param fingerprint: 32 bytes for what is to run.
    :raises KeyReused: the key belongs to something else.
    :raises RequestInProgress: the same runs already, and did not end within ``wait``.
    :raises OutcomeUnknown: its worker died, and ``on_crash`` is "refuse".
    :raises StoreUnavailable: the store cannot answer, and ``on_outage`` does not let it run.
    :raises RecordUnreadable: what is stored is damaged.
    """
    try:
        begun = guard.begin(key, fingerprint, settings.terms)
    except (StoreError, NewerRecord) as error:
        if not getattr(error, "outage", False):  # the store logs its outages, once
            log.error("idempotency: a request was refused: %s", error)
        raise errors.StoreUnavailable(retry_after=RETRY_AFTER, docs_url=settings.docs_url) from error
    except UnreadableRecord as error:
        raise errors.RecordUnreadable(docs_url=settings.docs_url) from error
    if isinstance(begun, _ANSWERS):
        return begun
    if isinstance(begun, Mismatch):
        raise errors.KeyReused(docs_url=settings.docs_url)
    if isinstance(begun, Unknown):
        raise errors.OutcomeUnknown(docs_url=settings.docs_url)
    raise errors.RequestInProgress(retry_after=RETRY_AFTER, docs_url=settings.docs_url)


def derivation_seed(digest: bytes, fingerprint: bytes) -> bytes:
    """What derived keys are made of: the key within its scope, and what came under it."""
    return combine("derivation seed 1", digest, fingerprint)
