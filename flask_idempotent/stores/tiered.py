"""The local tier before Redis. The local one arbitrates within its reach at all times, Redis arbitrates among all.

When Redis is away nothing switches over: the local tier goes on doing what it always did, and what it decided alone is
written to Redis when Redis is back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from os import getpid
from typing import Any

from ..core.forks import PerProcess
from ..core.guard import Outcome
from ..core.machine import Standing, standing
from ..core.record import OWNER, NewerRecord, State, UnreadableRecord, is_running, read_head
from ..core.store import Claim, Claimed, Found, Gone, OnOutage, Report, StoreError, TimedOut
from .breaker import Breaker
from .contact import Contact, NotAsked
from .early import EarlyOutcome, is_unanswered
from .local import LocalTier
from .recovery import Recovery
from .redis import RedisStore
from .wire import ServerError


class TieredStore:
    """Claims and outcomes go to both tiers; what Redis knows better comes back into the local one.

    :param local: the tier of this process or of this host.
    :param shared: Redis.
    :param notify: called when Redis is lost, when it is back, and when a request ran on two hosts.
    """

    def __init__(
        self, local: LocalTier, shared: RedisStore, notify: Callable[[Outcome, str], None] = lambda _outcome, _key: None
    ) -> None:
        self._local = local
        self._shared = shared
        self._notify = notify
        self._contact = PerProcess(self._new_contact)
        local.allow_dropping(self._copies_among)

    def _new_contact(self) -> Contact:
        recovery = Recovery(self._local, self._shared, lambda key: self._notify(Outcome.DUPLICATED, key))
        breaker = Breaker(
            recovery,
            lambda: self._glance(recovery),
            lambda away: self._notify(Outcome.OUTAGE if away else Outcome.RECOVERED, ""),
            self._let_go,
        )
        return Contact(breaker, recovery)

    def _glance(self, recovery: Recovery) -> bool:
        """What the probe does while all is well: bring the local tier what it has missed, and look after Redis."""
        contact = self._contact()
        contact.undone.difference_update([early for early in list(contact.undone) if early.undo()])
        for key in list(contact.missed):
            try:
                theirs = self._shared.peek(key)
                if theirs is not None:
                    self._adopt(key, theirs)
            except StoreError as error:
                if error.outage:
                    raise
                continue  # the other keys, and the look after Redis, do not wait for it
            contact.missed.discard(key)
        owed = recovery.glance()
        if recovery.is_blocked:
            recovery.is_blocked = False
            contact.breaker.hurry()
        return owed

    def claim(self, claim: Claim) -> Claimed | Found:
        """See :class:`~flask_idempotent.core.store.Store`. A finished record answers without Redis.

        :raises StoreError: Redis is away and the route does not go on with the local tier alone.
        """
        contact = self._contact[getpid()]
        missed, alone = None, False
        if not contact.is_established:
            missed = contact.establish()
            away = contact.breaker.is_open or (missed is not None and missed.outage)
            alone = away and claim.terms.on_outage is OnOutage.LOCAL
        mine = self._local.claim(claim, owed=alone)
        if isinstance(mine, Found):
            found = self._mended(mine, claim, contact)
            if found is not None:
                return found
            mine = self._local.claim(claim, owed=alone)  # what stood here is gone
            if isinstance(mine, Found):
                return mine
        if alone:
            contact.indebted.add(claim.owner)
            contact.breaker.probe()
            return mine
        try:
            if missed is not None:
                raise missed
            theirs = self._granted(claim, contact)
        except StoreError as error:
            return self._unagreed(claim, mine, error, contact)
        return self._settle(claim, mine, theirs)

    def renew(self, claims: Sequence[Claim]) -> list[bool]:
        """See :class:`~flask_idempotent.core.store.Store`. The local word counts where Redis was not asked."""
        contact = self._contact()
        told = contact.tell(self._shared.renew, claims)
        try:
            kept = self._local.renew(claims)
        except StoreError:  # another process holds the file: Redis's word is enough
            if told is None:
                raise
            kept = [True] * len(claims)
        if told is None:
            for claim in claims:
                self._owe(claim, contact)
            return kept
        agreed = [there or claim.owner in contact.indebted for claim, there in zip(claims, told[0], strict=True)]
        return [here and there for here, there in zip(kept, agreed, strict=True)]

    def complete(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`. Without Redis the outcome is kept here and written later."""
        if self._local.keeps_early and claim.owner not in self._contact[getpid()].indebted:
            return self._complete_meanwhile(claim, payload, ttl_ms)
        return self._end(claim, "complete", payload, ttl_ms)

    def fail(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._end(claim, "fail")

    def forget(self, claim: Claim) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._end(claim, "forget")

    def begin_step(self, claim: Claim, name: bytes, intent: bytes) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. A result that either tier has counts."""
        contact = self._contact()
        told = contact.tell(self._shared.begin_step, claim, name, intent)
        there = told[0] if told is not None else b""
        if there is None and claim.owner not in contact.indebted:
            return None
        here = self._local.begin_step(claim, name, intent, owed=contact.owes(claim, told))
        return None if here is None else (there or b"") + here

    def end_step(self, claim: Claim, result: bytes) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        return self._write(self._contact(), claim, "end_step", result)

    def wait(self, key: str, timeout_ms: int) -> Found | Gone | TimedOut:
        """See :class:`~flask_idempotent.core.store.Store`. On Redis, which wakes us; here, where it is away, or where
        the request runs without its consent.
        """
        if self._local.is_owed(key):
            return self._local.wait(key, timeout_ms)
        began = time.monotonic()
        there: Found | Gone | TimedOut = Gone()
        try:
            there = self._contact().ask(self._shared.wait, key, timeout_ms)
        except StoreError as error:
            if not error.outage:
                raise
        if isinstance(there, Found):
            return there
        left = timeout_ms - int((time.monotonic() - began) * 1000)
        here = self._local.wait(key, max(left, 0))
        return there if isinstance(here, Gone) else here

    def peek(self, key: str) -> Found | None:
        """See :class:`~flask_idempotent.core.store.Store`. Redis knows; without it, the local tier."""
        if not self._is_here(key):
            try:
                return self._contact().ask(self._shared.peek, key)
            except StoreError as error:
                if not error.outage:
                    raise
        return self._local.peek(key)

    def get(self, key: str) -> bytes | None:
        """See :class:`~flask_idempotent.core.store.Store`. Redis knows; without it, what was set here."""
        if self._is_here(key):
            return self._local.get(key)
        try:
            return self._contact().ask(self._shared.get, key)
        except StoreError as error:
            if not error.outage:
                raise
            return self._local.get(key)

    def _is_here(self, key: str) -> bool:
        """Whether the local tier knows better than Redis what stands under a key."""
        return self._local.is_owed(key) or (self._contact().recovery.is_behind and self._local.peek(key) is not None)

    def set(self, key: str, value: bytes, ttl_ms: int) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        owed = self._local.is_owed(key)  # then the probe may be writing an older value at this moment
        there = self._contact().tell(self._shared.set, key, value, ttl_ms)
        try:
            self._local.set(key, value, ttl_ms, owed=owed or there is None)
        except StoreError:
            if there is None:
                raise
            self._local.delete(key, owed=owed)  # no room for the new value, and the old one is none any more

    def delete(self, key: str) -> bool:
        """See :class:`~flask_idempotent.core.store.Store`."""
        owed = self._local.is_owed(key)
        there = self._contact().tell(self._shared.delete, key)
        here = self._local.delete(key, owed=owed or there is None)
        return here or bool(there and there[0])

    def report(self) -> Report:
        """See :class:`~flask_idempotent.core.store.Store`. Asks Redis, except while the breaker is open."""
        local = self._local.report()
        contact = self._contact()
        breaker = contact.breaker
        state = "open" if breaker.is_open else "closed"
        report = local._replace(waiting=self._local.owed_count(), breaker=state)
        try:
            contact.ask(self._shared.ping)
        except StoreError as error:
            reason = breaker.reason or str(error)
            return report._replace(outage=reason, since=breaker.since, refused=not error.outage)
        contact.establish()
        if contact.recovery.is_behind:
            report = report._replace(waiting=local.in_memory_size)
        warnings = self._shared.condition.warnings()
        return report._replace(cache_type="redis", redis_available=True, since=breaker.since, warnings=warnings)

    def close(self) -> None:
        """See :class:`~flask_idempotent.core.store.Store`."""
        self._contact().breaker.stop()
        self._shared.close()
        self._local.close()

    def _let_go(self) -> None:
        """Give back what the probe may have used after the store was closed."""
        self._shared.nodes.close()
        self._local.close()

    def _granted(self, claim: Claim, contact: Contact) -> Claimed | Found:
        """What Redis says to a claim. What it grants without knowing enough is given back at once: it may have been
        restarted just before, and have forgotten another host's.
        """
        careful = claim.terms.on_outage is OnOutage.REJECT
        if careful:
            contact.wait_for_others(NotAsked)
        theirs = contact.ask(self._shared.claim, claim)
        if isinstance(theirs, Claimed):
            try:
                if not contact.recovery.is_acquainted:
                    contact.know_servers()
                if careful:
                    contact.wait_for_others(StoreError)
            except StoreError as error:
                if error.outage and claim.terms.on_outage is OnOutage.LOCAL:  # it is going to run, with that claim
                    raise
                self._withdraw(claim, contact)
                raise NotAsked(str(error), outage=error.outage) from error
        return theirs

    def _withdraw(self, claim: Claim, contact: Contact) -> None:
        """Free a key on Redis at once: another host may be about to bring back the outcome that belongs there. Where
        that fails, it is owed; without a local tier, it ends with its lease.
        """
        try:
            self._shared.withdraw(claim.key, claim.owner)
        except StoreError:
            self._note_debt(claim, contact)

    def _mended(self, mine: Found, claim: Claim, contact: Contact) -> Found | None:
        """What stands here, unless Redis knows better: the worker of this host that holds the key may be asking Redis
        at this moment, or another host may have ended what began here, or an operator.

        :return: None where Redis has forgotten what does not run here any more, so that it is forgotten here, too.
        """
        if mine.record[1:2] == State.DONE.value:
            return mine
        try:
            theirs = contact.ask(self._shared.peek, claim.key)
        except StoreError:
            return mine
        if theirs is None:
            known = _is_over(mine, claim) and contact.recovery.knows_all
            return None if known and self._local.drop(claim.key, mine.record) else mine
        own = theirs.record[OWNER] == mine.record[OWNER]
        if own and theirs.record[1:2] == mine.record[1:2]:
            return mine
        if not own and is_running(mine.record, mine.now_ms) and self._local.is_owed(claim.key):
            return mine  # it was let run without Redis, and this host will stand by its outcome
        self._adopt(claim.key, theirs)
        return theirs

    def _settle(self, claim: Claim, mine: Claimed, theirs: Claimed | Found) -> Claimed | Found:
        """Bring the local tier in line with what Redis said about a claim that the local tier had granted."""
        if isinstance(theirs, Claimed):
            return theirs if theirs.attempt >= mine.attempt else mine
        if self._local.keeps and not self._adopt(claim.key, theirs):
            self._local.forget(claim)
        return theirs

    def _adopt(self, key: str, theirs: Found) -> bool:
        """Keep a copy of a finished record: it never changes. False for any other."""
        left = _retention_left(theirs)
        if left <= 0 or self._local.is_owed(key):
            return False
        self._local.set(key, theirs.record, left)
        return True

    def _unagreed(self, claim: Claim, mine: Claimed, error: StoreError, contact: Contact) -> Claimed:
        """Redis has not agreed to what the local tier had granted."""
        if error.outage and claim.terms.on_outage is OnOutage.LOCAL:
            self._owe(claim, contact)
            return mine
        if mine.attempt > 1:  # an earlier attempt has failed or died: that is not forgotten
            self._local.fail(claim._replace(attempt=mine.attempt))
        else:
            self._local.forget(claim)
        if error.outage and not isinstance(error, NotAsked):  # it may have been applied all the same
            self._note_debt(claim, contact)
        raise error

    def _end(self, claim: Claim, how: str, *args: Any) -> bool:
        """Complete, fail or forget a claim."""
        contact = self._contact[getpid()]
        try:
            return self._write(contact, claim, how, *args)
        finally:
            contact.indebted.discard(claim.owner)

    def _complete_meanwhile(self, claim: Claim, payload: bytes, ttl_ms: int) -> bool:
        """Complete here while Redis' answer is on its way, which nearly always agrees."""
        contact, early = self._contact[getpid()], EarlyOutcome(self._local, claim, payload, ttl_ms)
        try:
            told = contact.tell(self._shared.complete, claim, payload, ttl_ms, early.write)
            if early.is_kept and told is not None and told[0]:
                return True
            return self._keep(contact, claim, told, "complete", payload, ttl_ms)
        except BaseException:  # a greenlet may be killed here, too
            if not early.undo():
                contact.undone.add(early)
            raise
        finally:
            contact.indebted.discard(claim.owner)

    def _write(self, contact: Contact, claim: Claim, how: str, *args: Any) -> bool:
        """Write to both tiers: to Redis first, so that what it misses is noted together with what is kept here.

        A claim that Redis never agreed to is kept for this host although another one has the key by now: the clients
        of this host have been told so.
        """
        told = contact.tell(getattr(self._shared, how), claim, *args)
        return self._keep(contact, claim, told, how, *args)

    def _keep(self, contact: Contact, claim: Claim, told: tuple[bool] | None, how: str, *args: Any) -> bool:
        """Write here what Redis was told.

        :param told: its answer; None where it could not be told.
        """
        refused = told is not None and not told[0]
        if refused and claim.owner not in contact.indebted:  # another worker has the key: its word counts here, too
            self._drop_own(claim)
            return False
        agreed = told is not None and not refused
        if agreed and not self._local.keeps:
            return True
        try:
            kept = getattr(self._local, how)(claim, *args, owed=contact.owes(claim, told))
        except StoreError:
            if not agreed:
                raise
            contact.missed.add(claim.key)
        return agreed or bool(kept)

    def _drop_own(self, claim: Claim) -> None:
        taken = self._local.take(claim.key)
        if taken is not None and taken[0][OWNER] == claim.owner:
            self._local.delete(claim.key)

    def _owe(self, claim: Claim, contact: Contact) -> None:
        contact.indebted.add(claim.owner)
        self._note_debt(claim, contact)

    def _note_debt(self, claim: Claim, contact: Contact) -> None:
        self._local.owe(claim)
        contact.breaker.probe()

    def _copies_among(self, marks: Mapping[str, bytes]) -> Collection[str]:
        """Which settled records a full local tier may drop: Redis has them, too, and can be asked. It is asked where
        outcomes are written early.
        """
        contact = self._contact()
        if contact.breaker.reason is not None:
            return ()
        if not self._local.keeps_early:
            return marks
        told = contact.tell(self._shared.marks, list(marks))
        there = told[0] if told is not None else ()
        return [
            key
            for (key, mine), theirs in zip(marks.items(), there, strict=False)
            if not (isinstance(theirs, ServerError) or is_unanswered(mine, theirs))
        ]


def _is_over(found: Found, claim: Claim) -> bool:
    """Whether a record is that of a request that does not run, as far as can be told."""
    readable = standing(found.record, claim, found.now_ms) is not Standing.UNREADABLE
    return readable and not is_running(found.record, found.now_ms)


def _retention_left(found: Found) -> int:
    """Milliseconds for which a finished record is still kept; 0 for any other record."""
    try:
        head = read_head(found.record)
    except (NewerRecord, UnreadableRecord):
        return 0
    return head.deadline - found.now_ms if head.state is State.DONE else 0
