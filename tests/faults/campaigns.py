"""The campaigns by name: what there is, what goes wrong in it, and what is promised all the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from . import faults
from .excuses import Rules
from .faults import Fault
from .world import Site

STORE_TIMEOUT: Final = 0.25
LEASE: Final = 2.0
LONG_LEASE: Final = 20.0  # of hosts that must agree: longer than any outage
EMPTIED: Final = 4.0  # seconds of refusals after a Redis that came back with nothing; for up to 25,000 records
TTL: Final = 4 * 3600.0
CLIENT_TIMEOUT: Final = 5.0
ONE: Final = Site()


@dataclass(frozen=True)
class Campaign:
    """One way for things to go wrong.

    :param faults: come in turns, in a random order.
    :param site: without the settings that all have.
    :param lease: seconds.
    :param gap: seconds between two faults, from and to.
    :param refusal: seconds after an outage in which routes with ``reject`` may still refuse; the more, the more records
        Redis has to be given again.
    :param policies: of new keys during an outage, for which the promise holds.
    :param agree: the policies under which hosts agree at all times.
    """

    name: str
    faults: tuple[Fault, ...]
    site: Site = ONE
    lease: float = LEASE
    gap: tuple[float, float] = (2.5, 4.5)
    refusal: float = 2.0
    policies: tuple[str, ...] = ("local", "reject")
    agree: tuple[str, ...] = ("local", "reject")

    def settings(self, policy: str, tier: str) -> dict[str, Any]:
        """Of the extension, without their prefix."""
        given = {"ON_OUTAGE": policy, "LEASE": self.lease, "TTL": TTL, "LOCAL_TIER": tier}
        return {**given, "STORE_TIMEOUT": STORE_TIMEOUT, **self.site.settings}

    def rules(self, policy: str) -> Rules:
        """What is promised."""
        return Rules(
            lease=self.lease,
            rejects=policy == "reject",
            together=self.site.hosts == 1 or policy in self.agree,
            timeout=CLIENT_TIMEOUT,
            refusal=self.refusal,
        )


_TWO: Final = Site(hosts=2, workers=2)
CAMPAIGNS: Final = {
    campaign.name: campaign
    for campaign in (
        Campaign("freeze", (faults.frozen,)),
        Campaign("kill", (faults.killed,)),
        Campaign("kill-empty", (faults.killed,), Site(redis="volatile"), refusal=EMPTIED),
        Campaign("cut", (faults.refused, faults.swallowed), Site(link=True)),
        Campaign("pauses", (faults.paused,)),
        Campaign("full", (faults.full,)),
        Campaign("read-only", (faults.read_only,)),
        Campaign("sentinel", (faults.failed_over,), Site(redis="sentinel", settings={"MIN_REPLICAS": 1})),
        Campaign("workers", (faults.worker_killed, faults.worker_stopped)),
        Campaign("workers-in-outage", (faults.killed_with_worker,), Site(workers=4, threads=1)),
        Campaign("clocks", (faults.clock_moved, faults.clock_moved, faults.frozen), Site(clocks=True)),
        Campaign("two-hosts", (faults.frozen, faults.killed), _TWO, lease=LONG_LEASE, agree=("reject",)),
        Campaign(
            "two-hosts-empty",
            (faults.killed,),
            replace(_TWO, redis="volatile"),
            lease=LONG_LEASE,
            refusal=EMPTIED,
            agree=("reject",),
        ),
    )
}
