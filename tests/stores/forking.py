"""A busy process that forks: ``python -m tests.stores.forking PORT CHILDREN`` prints how each of its children ended.

Threads claim, wait and complete all the time, so that locks are held and connections in use at every fork. Each child
does the same once, and is ended by an alarm when it cannot.

The address is a number, and the first fork comes when all threads have made a turn: a name that is looked up, or a
module that is imported, at the moment of a fork can stop the child in the C library or in Python, whatever we do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import Counter
from itertools import count

import redis

from flask_idempotent.core.guard import Guard
from flask_idempotent.core.record import StoredResponse
from flask_idempotent.core.store import Claim, Terms
from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.redis import RedisStore

from .making import SAME, TTL

THREADS = 6
ALARM_SECONDS = 10


def request(guard: Guard, key: str) -> None:
    """One request's way, and a short wait for another one."""
    claim = guard.begin(key, SAME, Terms(lease_ms=30, ttl_ms=TTL))
    assert isinstance(claim, Claim)
    guard.store.wait(key, 1)
    assert guard.finish(claim, StoredResponse("200 OK", (), b"made"), TTL, 1024)


def child(guard: Guard) -> int:
    """How a forked process ends: 0 when all went well, the alarm's signal when something stood still."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(ALARM_SECONDS)
        request(guard, f"idempotency:{{child {os.getpid()}}}")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(port: int, children: int) -> None:
    client = redis.Redis(host="127.0.0.1", port=port, max_connections=THREADS // 2)
    guard = Guard(RedisStore(nodes_behind(client, 5.0)), lambda *_: None)
    warm = threading.Barrier(THREADS + 1)

    def work(number: int) -> None:
        for turn in count():
            request(guard, f"idempotency:{{{number} {turn}}}")
            if turn == 0:
                warm.wait(60)

    for number in range(THREADS):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    warm.wait(60)
    print(dict(Counter(child(guard) for _ in range(children))), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
