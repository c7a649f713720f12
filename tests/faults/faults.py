"""The faults. Each begins, holds for a while that is drawn at random, and is over when it returns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Final

from ..servers.ports import free_port
from ..servers.standalone import RedisProcess
from . import host
from .evidence import Kind
from .world import World

Fault = Callable[[World, random.Random], None]

HOLD_SECONDS: Final = (0.3, 3.0)
PAUSE_SECONDS: Final = (0.02, 0.6)  # around the 0.25 after which a store gives up
PAUSES: Final = (3, 8)
FAILOVER_SECONDS: Final = 60.0  # where sentinels do not agree at once they wait and try again
STOP_LEASES: Final = (1.2, 2.0)
REDIS_JUMP_SECONDS: Final = 3600  # at most, either way; less than half of the TTL
WORKER_JUMP_SECONDS: Final = 86_400


def _hold(world: World, rng: random.Random) -> None:
    time.sleep(world.pace * rng.uniform(*HOLD_SECONDS))


def _redis(world: World) -> RedisProcess:
    assert world.redis is not None
    return world.redis


def frozen(world: World, rng: random.Random) -> None:
    """Redis stands still: its connections stay, and nothing is answered."""
    with world.fault(Kind.OUTAGE, "Redis frozen"):
        _redis(world).freeze()
        _hold(world, rng)
        _redis(world).thaw()


def paused(world: World, rng: random.Random) -> None:
    """Redis stands still several times, for less or more than a store waits."""
    for _ in range(rng.randint(*PAUSES)):
        with world.fault(Kind.OUTAGE, "Redis paused"):
            _redis(world).freeze()
            time.sleep(rng.uniform(*PAUSE_SECONDS))
            _redis(world).thaw()
        time.sleep(rng.uniform(0, PAUSE_SECONDS[1]))


def killed(world: World, rng: random.Random) -> None:
    """Redis dies, and comes back with what it held where it is persistent."""
    with world.fault(Kind.OUTAGE, "Redis killed"):
        _redis(world).stop()
        if world.site.redis == "volatile":
            with world.fault(Kind.EMPTIED, "Redis emptied"):
                pass
        _hold(world, rng)
        _redis(world).start()


def refused(world: World, rng: random.Random) -> None:
    """Redis cannot be reached: connections break and are refused."""
    assert world.link is not None
    with world.fault(Kind.OUTAGE, "Redis cut off, refused"):
        world.link.cut()
        _hold(world, rng)
        world.link.open()


def swallowed(world: World, rng: random.Random) -> None:
    """Redis cannot be reached: what is sent to it vanishes."""
    assert world.link is not None
    with world.fault(Kind.OUTAGE, "Redis cut off, swallowed"):
        world.link.freeze()
        _hold(world, rng)
        world.link.open()


def full(world: World, rng: random.Random) -> None:
    """Redis has no memory for anything new."""
    with _redis(world).client() as client, world.fault(Kind.FULL, "Redis out of memory"):
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
        _hold(world, rng)
        client.config_set("maxmemory", 0)


def read_only(world: World, rng: random.Random) -> None:
    """Redis takes no writes: it is another's replica, or lacks replicas itself."""
    replica = rng.random() < 0.5
    with _redis(world).client() as client, world.fault(Kind.OUTAGE, "Redis read-only"):
        if replica:
            client.replicaof("127.0.0.1", str(free_port()))
        else:
            client.config_set("min-replicas-to-write", 1)
        _hold(world, rng)
        client.replicaof("NO", "ONE")
        client.config_set("min-replicas-to-write", 0)


def failed_over(world: World, rng: random.Random) -> None:
    """The master dies, a replica takes its place, and it comes back as a replica."""
    assert world.sentinel is not None
    with world.fault(Kind.OUTAGE, "master killed"):
        old = world.sentinel.kill_master()
        world.sentinel.await_failover(old, FAILOVER_SECONDS)
    _hold(world, rng)
    old.start()
    world.sentinel.await_healthy(FAILOVER_SECONDS)


def worker_killed(world: World, rng: random.Random) -> None:
    """A worker dies in the middle of what it does."""
    pid = rng.choice(sorted(rng.choice(world.hosts).workers()))
    with world.fault(Kind.KILLED, "worker killed", pid):
        host.kill(pid)


def worker_stopped(world: World, rng: random.Random) -> None:
    """A worker stands still for longer than its lease, and goes on as if nothing had happened."""
    pid = rng.choice(sorted(rng.choice(world.hosts).workers()))
    with world.fault(Kind.STOPPED, "worker stopped", pid):
        host.stop(pid)
        time.sleep(float(world.site.settings["LEASE"]) * rng.uniform(*STOP_LEASES))
        host.resume(pid)


def killed_with_worker(world: World, rng: random.Random) -> None:
    """Redis dies, and before it is back a worker dies that has something to write to it."""
    with world.fault(Kind.OUTAGE, "Redis killed"):
        _redis(world).stop()
        _hold(world, rng)
        worker_killed(world, rng)
        _redis(world).start()


def clock_moved(world: World, rng: random.Random) -> None:
    """Somebody sets the time of Redis or of the workers."""
    assert world.redis_clock is not None
    assert world.worker_clock is not None
    of_redis = rng.random() < 0.5
    clock, most = (world.redis_clock, REDIS_JUMP_SECONDS) if of_redis else (world.worker_clock, WORKER_JUMP_SECONDS)
    with world.fault(Kind.CLOCK, "clock of Redis set" if of_redis else "clock of the workers set"):
        clock.move(rng.randint(-most, most))
    time.sleep(rng.uniform(0.1, 1.0))
