"""Greenlets that are killed in the middle of a call: ``python -m tests.stores.greenlets PORT`` prints what is left.

They run on a store with two connections while the server pauses, so that their replies come when they are gone.
"""

from __future__ import annotations

# ruff: noqa: E402 - the patch comes before everything that it patches
import gevent.monkey

gevent.monkey.patch_all()

import json
import sys

import gevent
import redis

from flask_idempotent.stores.addresses import nodes_behind
from flask_idempotent.stores.nodes import OneServer
from flask_idempotent.stores.redis import RedisStore

from .making import TTL, claim_of

ROUNDS = 10
CONNECTIONS = 2


def main(port: int) -> dict[str, object]:
    nodes = nodes_behind(redis.Redis(port=port, max_connections=CONNECTIONS), 5.0)
    assert isinstance(nodes, OneServer)
    store = RedisStore(nodes)
    values = {f"idempotency:{{{number}}}": b"%d" % number for number in range(20)}
    for key, value in values.items():
        store.set(key, value, TTL)
    wrong: list[object] = []
    with redis.Redis(port=port, protocol=2) as server:
        for turn in range(ROUNDS):
            server.client_pause(30, all=True)
            doomed = [gevent.spawn(store.get, key) for key in list(values)[:6]]  # four of them wait for a connection
            doomed.append(gevent.spawn(store.claim, claim_of(bytes([turn]) * 16, f"idempotency:{{claim {turn}}}")))
            gevent.sleep(0.005)
            gevent.killall(doomed)
            wrong += [key for key, value in values.items() if store.get(key) != value]
        pool = nodes.pool
        connected = [each for each in server.client_list() if each["cmd"] == "get"]
        return {"wrong": wrong, "made": pool._made - len(pool._idle), "connections": len(connected) <= CONNECTIONS}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
