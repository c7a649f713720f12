"""``python -m tests.faults``: the campaigns at length, or one of them."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from .campaigns import CAMPAIGNS
from .play import play
from .report import details, summary


def options(arguments: list[str]) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("campaign", nargs="*", choices=[*CAMPAIGNS, []], help="all of them unless some are named")
    parser.add_argument("--policy", choices=("local", "reject"), help="both unless one is named")
    parser.add_argument("--requests", type=int, default=100_000, help="planned in each (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=400.0, help="planned a second (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="of an earlier campaign, to repeat it")
    parser.add_argument("--tier", default="shared", help="LOCAL_TIER (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes of each host")
    parser.add_argument("--threads", type=int, help="of each worker; 1 is gunicorn's sync worker")
    parser.add_argument("--pace", type=float, default=1.0, help="by what the length of faults is multiplied")
    parser.add_argument("--keep", action="store_true", help="keep what campaigns leave behind that pass, too")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Play what is asked for; 1 when something went wrong."""
    given = options(arguments)
    failed = False
    for name in given.campaign or CAMPAIGNS:
        for policy in [given.policy] if given.policy else CAMPAIGNS[name].policies:
            failed |= not _played(name, policy, given)
    return int(failed)


def _played(name: str, policy: str, given: argparse.Namespace) -> bool:
    """Play one campaign and print its report; whether all is well."""
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    directory = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
    print(f"{name}, {policy}, seed {seed}, in {directory}", flush=True)
    played = play(
        CAMPAIGNS[name],
        policy,
        directory,
        seed=seed,
        requests=given.requests,
        rate=given.rate,
        tier=given.tier,
        workers=given.workers,
        threads=given.threads,
        pace=given.pace,
        say=lambda line: print(line, flush=True),
    )
    print(summary(played), flush=True)
    if played.verdict.findings:
        print(f"{details(played)}\nall of it is in {directory}", flush=True)
    elif not given.keep:
        shutil.rmtree(directory)
    return not played.verdict.findings


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # everything that was started ends with its context
    sys.exit(main(sys.argv[1:]))
