"""An outcome that is written to the local tier while Redis' answer to it is on its way.

Until that has come, Redis takes the request for running. So whoever finds it like that, when the worker has died since,
knows that Redis has to be told; and whoever needs room, that this is no copy.
"""

from __future__ import annotations

from contextlib import suppress

from ..core.machine import begun, head_of
from ..core.record import State
from ..core.store import Claim, StoreError
from .tier import LocalTier


class EarlyOutcome:
    """Written at most once, and taken back where it is neither agreed to by Redis nor owed to it.

    :param local: the tier.
    :param claim: whose outcome it is.
    :param payload: the packed response.
    :param ttl_ms: its retention.
    """

    __slots__ = ("_claim", "_local", "_payload", "_tried", "_ttl_ms", "is_kept")

    def __init__(self, local: LocalTier, claim: Claim, payload: bytes, ttl_ms: int) -> None:
        self.is_kept = False
        self._tried = False
        self._local = local
        self._claim = claim
        self._payload = payload
        self._ttl_ms = ttl_ms

    def write(self) -> None:
        """Write it, unless that would take long or was tried before: it is written when Redis has answered, too."""
        if not self._tried:
            self._tried = True
            with suppress(StoreError):
                self.is_kept = self._local.complete_early(self._claim, self._payload, self._ttl_ms)

    def undo(self) -> bool:
        """Put the claim back in its place, to be failed or to lapse. False where that was not possible."""
        claim, local = self._claim, self._local
        record, expires = begun(claim, now := local.now())
        try:
            taken = local.take(claim.key) if self._tried else None
            if taken is not None and taken[0].startswith(head_of(claim, State.DONE)) and not local.is_owed(claim.key):
                local.set(claim.key, record, expires - now)
        except StoreError:
            return False
        return True


def is_unanswered(mine: bytes, theirs: object) -> bool:
    """Whether Redis takes for running what is done here.

    :param mine: the :data:`~flask_idempotent.core.record.MARK` of a record here.
    :param theirs: that of Redis' record, as :meth:`~flask_idempotent.stores.writeback.WriteBack.marks` tells it.
    """
    return mine[:1] == State.DONE.value and theirs == State.PENDING.value + mine[1:]
