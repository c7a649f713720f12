"""A process that races another for keys: ``python -m tests.stores.racer PORT KIND ROUNDS`` prints the rounds it won."""

from __future__ import annotations

import json
import os
import sys

import redis

from flask_idempotent.core.store import Claimed, Store
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.memory import MemoryStore, RecordCache
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.tiered import TieredStore

from .making import claim_of

RACERS = 2


def main(port: int, kind: str, rounds: int) -> list[int]:
    with redis.Redis(port=port, protocol=2) as referee:
        shared = RedisStore(nodes_behind(redis.Redis(port=port), 5.0))
        store: Store = shared if kind == "redis" else TieredStore(MemoryStore(RecordCache(10 * rounds)), shared)
        won = []
        for number in range(rounds):
            claim = claim_of(os.urandom(16), f"race:{{{number}}}")
            gate = f"gate:{number}"
            referee.incr(gate)
            while int(referee.get(gate) or 0) < RACERS:
                pass
            if isinstance(store.claim(claim), Claimed):
                won.append(number)
        shared.close()
        return won


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
