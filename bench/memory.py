"""What a claim with its outcome costs in the local stores, by the number of live records: ``python -m bench.memory``.

The stores of all sizes stand side by side and take turns, a few requests each, so that a change of the machine's speed
meets all alike. The ratio is to the smallest store of the same kind; the aim is to stay below 2.
"""

from __future__ import annotations

import gc
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flask_idempotent.core.record import OWNER_SIZE, Head, State
from flask_idempotent.core.store import Claim, Terms
from flask_idempotent.stores.local import LocalStore
from flask_idempotent.stores.memory import MemoryStore, RecordCache
from flask_idempotent.stores.shared import SharedStore, default_path

TERMS: Final = Terms(lease_ms=30_000, ttl_ms=600_000)
PAYLOAD: Final = b"x" * 400
SIZES: Final = {"memory": (1_000, 10_000, 100_000, 1_000_000), "shared": (1_000, 10_000, 100_000)}
ROUNDS: Final = 400
BATCH: Final = 5  # requests of one store in a row

Measured = dict[tuple[str, int], list[tuple[float, float, float]]]  # by kind of store and number of records


def new_claim() -> Claim:
    """A request that nobody has made before."""
    return Claim(f"idempotency:{{{secrets.token_hex(32)}}}", secrets.token_bytes(OWNER_SIZE), bytes(32), TERMS)


def fill(store: LocalStore, size: int) -> None:
    """Put finished records into a store, which expire one by one."""
    head = Head(State.DONE, 1, bytes(OWNER_SIZE), bytes(32), 0).pack()
    record = head + PAYLOAD
    for number in range(size):
        store.set(f"idempotency:{{{secrets.token_hex(32)}}}", record, TERMS.ttl_ms + 60_000 + number)


def requests(store: LocalStore) -> tuple[float, float, float]:
    """Microseconds of a claim, its outcome, and a replay; the number of live records stays what it was."""
    claims = [new_claim() for _ in range(BATCH)]
    duplicates = [claim._replace(owner=secrets.token_bytes(OWNER_SIZE)) for claim in claims]
    began = time.perf_counter_ns()
    for claim in claims:
        store.claim(claim)
    claimed = time.perf_counter_ns()
    for claim in claims:
        store.complete(claim, PAYLOAD, TERMS.ttl_ms)
    completed = time.perf_counter_ns()
    for duplicate in duplicates:
        store.claim(duplicate)
    replayed = time.perf_counter_ns()
    for claim in claims:
        store.delete(claim.key)
    return (claimed - began) / BATCH / 1000, (completed - claimed) / BATCH / 1000, (replayed - completed) / BATCH / 1000


def main() -> None:
    """Fill the stores, measure, print the table."""
    shared_memory = default_path().parent.parent
    with tempfile.TemporaryDirectory(dir=shared_memory) as directory:
        make: dict[str, Callable[[int], LocalStore]] = {
            "memory": lambda size: MemoryStore(RecordCache(2 * size)),
            "shared": lambda size: SharedStore(Path(directory) / str(size) / "records.sqlite", 1 << 30),
        }
        stores = {(kind, size): make[kind](size) for kind, sizes in SIZES.items() for size in sizes}
        for (_, size), store in stores.items():
            fill(store, size)
        measured: Measured = {name: [] for name in stores}
        gc.collect()
        gc.freeze()
        for _ in range(ROUNDS):
            for name, store in stores.items():
                measured[name].append(requests(store))
        for store in stores.values():
            store.close()
    show(measured)


def show(measured: Measured) -> None:
    """Print medians, and the 10th percentile of a claim with its outcome, the least troubled by other work."""
    print("| store | live records | claim us | outcome us | replay us | claim + outcome, p10 | ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    smallest: dict[str, float] = {}
    for (kind, size), rows in measured.items():
        claim, outcome, replay = (statistics.median(column) for column in zip(*rows, strict=True))
        both = statistics.quantiles([claim + outcome for claim, outcome, _ in rows], n=10)[0]
        ratio = both / smallest.setdefault(kind, both)
        print(f"| {kind} | {size:,} | {claim:.0f} | {outcome:.0f} | {replay:.0f} | {both:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
