"""What Redis is told when it is back: what it has missed, and, where it was restarted, all that this host holds.

What it has missed comes first, and ends the outage. What a restarted Redis has lost may be much, and is brought back
while requests go on: this host's own are answered from its local tier meanwhile, and routes that must not run twice
wait for it, because other hosts take about as long to bring back theirs. One worker of a host does it for all.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..core.record import MARK, OWNER, OWNER_SIZE, NewerRecord, State, UnreadableRecord, read_head
from ..core.steps import is_journal, merge_journals
from ..core.store import Claim, StoreError, Terms
from .early import is_unanswered
from .local import Debt, LocalTier
from .redis import RedisStore
from .writeback import Copy, Restored

log = logging.getLogger("flask_idempotent")

GRACE_SECONDS: Final = 0.6  # after an outage or a restart, for other hosts to notice, and to write back what they hold
ROUNDS: Final = 10  # of writing back before the breaker closes
BATCH: Final = 500  # debts in one pipeline
PART: Final = 2000  # records that are looked at together when all are brought back
SAMPLE: Final = 5  # copies that are looked for when a process first meets its Redis
TURN_MS: Final = 2000  # after which another worker brings the records back, if the one who does says nothing more
_SERVERS: Final = "servers"  # the note about which servers have the records of this tier
_LATEST: Final = "servers with the latest records"  # a note likewise, while the older ones are looked for
_NOTICED: Final = "last restart"  # a note: when a restart was noticed, milliseconds by the tier's clock
_TURN: Final = "who brings records back"
_RECORDS: Final = frozenset(state.value for state in State)


class Recovery:
    """Brings Redis and the local tier together again. Used by one probe at a time in each process.

    :param local: the tier that kept everything.
    :param shared: Redis.
    :param duplicated: called with the key of a request that ran here and elsewhere.
    """

    def __init__(self, local: LocalTier, shared: RedisStore, duplicated: Callable[[str], None]) -> None:
        self._local = local
        self._shared = shared
        self._duplicated = duplicated
        self._lock = threading.Lock()
        self._reported: set[tuple[str, bytes]] = set()  # in the log
        self._twice: set[tuple[str, bytes]] = set()  # told as run twice
        self._connects = shared.nodes.connects
        self._seen = -1  # connections made when the servers were last told apart
        self._servers: str | None = None
        self._me = secrets.token_bytes(OWNER_SIZE)
        self.is_behind = False  # whether Redis may lack what this tier holds beside its debts
        self.lacks_latest = False  # whether that may be something recent
        self._has_looked = False  # for what other workers may have left behind
        self.is_blocked = False  # whether a claim elsewhere was in the way of an outcome that was brought back
        self.trusted_from = float("-inf")  # monotonic seconds; other hosts have brought back theirs by then

    def __call__(self) -> bool:
        """Write back what Redis has missed; whether all of it is settled.

        :raises StoreError: Redis is away.
        """
        self._shared.ping()
        self.meet()
        if self._servers is None:  # where nobody may tell, it is taken for restarted
            self.is_behind = self.lacks_latest = True
        if not self.is_behind:  # else all records are looked at
            self._owe_unanswered()
        return self._pay_all()

    def glance(self) -> bool:
        """Bring a restarted Redis up to date. Whether there are debts.

        :raises StoreError: Redis is away.
        """
        self._shared.ping()
        self.meet()
        if self.is_behind:
            self._catch_up()
        if not self._has_looked:
            self._owe_unanswered()
        return self._local.owed_count() > 0

    @property
    def knows_all(self) -> bool:
        """Whether what Redis does not have, it has been told to forget: it is known, and was not just restarted."""
        return self.is_acquainted and self._servers is not None and not self.is_behind

    @property
    def is_acquainted(self) -> bool:
        """Whether no connection was made since the servers were last told apart."""
        return self._connects.number == self._seen

    def meet(self) -> bool:
        """Look which servers answer, if a connection was made since the last look. True where they were restarted or
        replaced, so that records may be missing there.

        A process that meets its Redis for the first time also looks whether somebody has emptied it on purpose.

        :raises StoreError: Redis is away.
        """
        if self.is_acquainted:
            return False
        with self._lock:
            servers = self._shared.servers()
            self._seen = self._connects.number
            if servers is None or servers == self._servers:
                return False
            first, self._servers = self._servers is None, servers
            known = self._local.recall(_SERVERS)
            if known is None:
                self._local.remember(_SERVERS, servers.encode())
                return False
            if first and known == servers.encode():
                self._heed_flush()
                if noticed := self._local.recall(_NOTICED):
                    self._trust_after(int(noticed))
                return False
            log.warning("idempotency: Redis was restarted or replaced; it gets what this host holds")
            self.is_behind = self.lacks_latest = True
            now = self._local.now()
            self._local.remember(_NOTICED, b"%d" % now)
            self._trust_after(now)
            return True

    def _owe_unanswered(self) -> None:
        """Owe the latest outcomes that were written here before Redis could answer, by workers that may be dead."""
        self._has_looked = True
        if not self._local.keeps_early:
            return
        latest = [one for one in self._local.copies(0, BATCH).records if _is_record(*one[:2])]
        for (key, record, left), theirs in zip(latest, self._shared.marks([key for key, *_ in latest]), strict=True):
            if is_unanswered(record[MARK], theirs):
                self._local.owe(_holder(Copy(key, record, left)))

    def _trust_after(self, noticed: int) -> None:
        """Give the other hosts time from when a restart was noticed, in milliseconds by the tier's clock."""
        left = GRACE_SECONDS - (self._local.now() - noticed) / 1000
        self.trusted_from = max(self.trusted_from, time.monotonic() + left)

    def _heed_flush(self) -> None:
        """Where Redis runs on, but has nothing of what it was given, somebody has emptied it: copies go, too."""
        now = self._local.now()
        over = [key for key, record, _ in self._local.copies(0, SAMPLE).records if _is_over(key, record, now)]
        given = [key for key in over if not self._local.is_owed(key)]
        if given and all(self._shared.get(key) is None for key in given):
            log.warning("idempotency: Redis was emptied; this host's copies of its records are dropped")
            self._local.drop_copies()

    def _catch_up(self) -> None:
        """See to it that Redis has everything: by ourselves, unless another worker of this host does it or has."""
        servers = (self._servers or "").encode()
        if not servers or self._local.recall(_SERVERS) != servers:
            if not self._bring_back(servers):
                self._note_latest(servers)
                return
            self._local.remember(_SERVERS, servers)
            self._local.take_turn(_TURN, self._me, 0)
        self._has_latest()
        self.is_behind = False

    def _bring_back(self, servers: bytes) -> bool:
        """Give a restarted Redis every record of this tier that it does not have.

        A restart loses what came last. As soon as it is seen to have a whole part, it has all that is older, too; the
        rest is looked through nevertheless, for no harm must come of it if that is wrong.

        :return: False when it is another's turn, or Redis was restarted once more.
        """
        before: int | None = 0
        there = 1  # records of the last part that Redis had
        running: dict[str, bytes] = {}
        while before is not None:
            if not self._local.take_turn(_TURN, self._me, TURN_MS):
                return False
            records, before = self._local.copies(before, PART)
            own = [one for one in records if _is_record(*one[:2])]
            running |= {key: record[OWNER] for key, record, _ in own if record[1:2] == State.PENDING.value}
            there = self._bring(own, look=there > 0)
            self._shared.set_absent([one for one in records if not _is_record(*one[:2])])
            if own and there == len(own) and self.lacks_latest:
                self._local.remember(_LATEST, servers)
                self._has_latest()
        for key, owner in running.items():
            if _owner(self._local.take(key)) != owner:  # it has ended while it was written
                self._shared.withdraw(key, owner)
        self.meet()
        return (self._servers or "").encode() == servers

    def _bring(self, records: list[tuple[str, bytes, int]], *, look: bool) -> int:
        """Write records back that are not there as they are here; how many were.

        :param look: whether it is worth looking: a server that had nothing so far has nothing older either.
        """
        marks = self._shared.marks([key for key, _, _ in records]) if look else [None] * len(records)
        finished, others = [], []
        for one, mark in zip(records, marks, strict=True):
            if mark is None and one[1][1:2] == State.DONE.value:
                finished.append(one)
            elif mark != one[1][MARK]:
                others.append(one)
        there = len(records) - len(finished) - len(others)
        taken = self._shared.put_back(finished)
        others += [one for one in finished if one[0] in taken]
        now = self._local.now()
        copies = [Copy(key, record, left, _lease_left(record, now)) for key, record, left in others]
        for copy, restored in zip(copies, self._shared.restore(copies), strict=True):
            if restored is Restored.PENDING_ELSEWHERE and copy.record[1:2] == State.DONE.value:
                self.is_blocked = True
                self._local.owe(_holder(copy))  # that claim may be given back: then this outcome is to stand there
        return there

    def _note_latest(self, servers: bytes) -> None:
        """Whether the worker whose turn it is has come so far that only what is older can be missing."""
        if servers and self._local.recall(_LATEST) == servers:
            self._has_latest()

    def _has_latest(self) -> None:
        if not self.lacks_latest:
            return
        self.trusted_from = max(self.trusted_from, time.monotonic() + GRACE_SECONDS / 2)
        self.lacks_latest = False

    def _pay_all(self) -> bool:
        """Pay what is owed, and what comes up meanwhile, as long as it gets less; whether nothing is left."""
        left = self._pay()
        for _ in range(ROUNDS - 1):
            if not left:
                break
            before, left = left, self._pay()
            if left >= before:  # what is in the way of these does not go at once
                break
        if not left:
            self._reported.clear()
            self._twice.clear()
        return not left

    def _pay(self) -> int:
        """One round over everything that is owed; how much of it is left."""
        serial, left = 0, 0
        while debts := self._local.debts(serial, BATCH):
            serial = debts[-1].serial
            left += self._pay_batch(debts)
        return left

    def _pay_batch(self, debts: Sequence[Debt]) -> int:
        taken = {debt.key: self._local.take(debt.key) for debt in debts}
        held, left = [], 0
        for debt in debts:
            if debt.owner and _owner(taken[debt.key]) == debt.owner:
                held.append(debt)
            else:
                left += not self._pay_other(debt, taken[debt.key])
        copies = [_copy(debt, taken[debt.key]) for debt in held]
        for debt, restored in zip(held, self._shared.restore(copies), strict=True):
            left += not self._judge(debt, restored, taken[debt.key])
        return left

    def _pay_other(self, debt: Debt, taken: tuple[bytes, int] | None) -> bool:
        """A claim that came to nothing here and may stand there, or a plain value."""
        try:
            if debt.owner:
                self._shared.withdraw(debt.key, debt.owner)
            elif taken is None:
                self._shared.delete(debt.key)
            elif is_journal(debt.key):
                journal = merge_journals(self._shared.get(debt.key) or b"", taken[0])
                self._shared.set(debt.key, journal, taken[1])
            else:
                self._shared.set(debt.key, *taken)
        except StoreError as error:
            if error.outage:
                raise
            return self._set_aside(debt, f"a record cannot be written back: {error}")
        return self._settle(debt, taken)

    def _judge(self, debt: Debt, restored: Restored | StoreError, taken: tuple[bytes, int] | None) -> bool:
        if isinstance(restored, StoreError):
            return self._set_aside(debt, f"a record cannot be written back: {restored}")
        if restored is Restored.PENDING_ELSEWHERE:
            return self._set_aside(debt, "a request has begun elsewhere since an outage, and here as well")
        if restored is Restored.DONE_ELSEWHERE:
            if (debt.key, debt.owner) not in self._reported:
                log.error("idempotency: %s ran here and elsewhere", debt.key, extra={"idempotency_key": debt.key})
            if (debt.key, debt.owner) not in self._twice:
                self._twice.add((debt.key, debt.owner))
                self._duplicated(debt.key)
            if taken is not None and taken[0][1:2] == State.PENDING.value:  # not done here: its own host keeps it
                return self._set_aside(debt, "a request still runs here that another host has finished")
        return self._settle(debt, taken)

    def _settle(self, debt: Debt, taken: tuple[bytes, int] | None) -> bool:
        """Strike a debt off, unless its record has changed while it was written."""
        again = self._local.take(debt.key)
        unchanged = (again and again[0]) == (taken and taken[0])
        return unchanged and self._local.settle(debt)

    def _set_aside(self, debt: Debt, why: str) -> bool:
        """A record that cannot be written now is tried again later, and must not hold up the others."""
        if (debt.key, debt.owner) not in self._reported:
            self._reported.add((debt.key, debt.owner))
            log.error("idempotency: %s", why, extra={"idempotency_key": debt.key})
        return False


def _owner(taken: tuple[bytes, int] | None) -> bytes | None:
    return None if taken is None else taken[0][OWNER]


def _copy(debt: Debt, taken: tuple[bytes, int] | None) -> Copy:
    record, left = taken or (b"", 0)
    return Copy(debt.key, record, left, debt.lease_ms)


def _holder(copy: Copy) -> Claim:
    """The claim that a record was written by, as far as a debt has to know it."""
    return Claim(copy.key, copy.record[OWNER], b"", Terms(lease_ms=copy.lease_ms, ttl_ms=copy.ttl_ms))


def _is_record(key: str, value: bytes) -> bool:
    """Whether it is a request's, and neither a plain value nor a journal."""
    return not is_journal(key) and value[1:2] in _RECORDS


def _is_over(key: str, value: bytes, now: int) -> bool:
    """Whether it is a record of a request that does not run."""
    return _is_record(key, value) and (value[1:2] != State.PENDING.value or _lease_left(value, now) <= 1)


def _lease_left(record: bytes, now: int) -> int:
    try:
        return max(read_head(record).deadline - now, 1)
    except (NewerRecord, UnreadableRecord):
        return 1
