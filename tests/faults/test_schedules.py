"""The moments in which a failover goes wrong elsewhere, each staged step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from .campaigns import CAMPAIGNS, LEASE, LONG_LEASE
from .evidence import Kind
from .excuses import Rules
from .host import Host, resume, stop
from .scene import Held, Scene
from .world import Site, World

pytestmark = pytest.mark.redis

Stage = Callable[..., Scene]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A world of hosts with one worker each, whose clients are the test."""
    with ExitStack() as end:

        def set_up(policy: str, *, redis: str = "persistent", link: bool = False, **settings: Any) -> Scene:
            settings = CAMPAIGNS["kill"].settings(policy, "shared") | settings
            world = end.enter_context(World(Site(workers=1, redis=redis, link=link, settings=settings), tmp_path))
            scene = Scene(world)
            end.callback(scene.close)
            return scene

        yield set_up


def told(answer: Any) -> tuple[int, bool]:
    return answer.status, answer.replayed


def open_breaker(scene: Scene, host: Host, status: str) -> None:
    """Let a worker find out that Redis is away."""
    for number in range(3):
        scene.ask(host, f"finds-out-{number}-{host.name}")
    scene.sees(host, status)


@pytest.mark.parametrize("policy", ["local", "reject"])
def test_holder_in_redis(stage: Stage, policy: str):
    """A holds a key in Redis, Redis dies, B gets the retry."""
    scene = stage(policy)
    world, a = scene.world, scene.world.hosts[0]
    b = world.new_host("b", shares_with=a.name)
    assert told(scene.ask(b, "before")) == (201, False)
    held = Held(scene, a, "held")
    assert world.redis is not None
    with world.redis.client() as client:
        assert client.dbsize() == 2

    with world.fault(Kind.OUTAGE, "Redis killed"):
        world.redis.stop()
        lease_over = time.monotonic() + 1.5 * LEASE
        while time.monotonic() < lease_over:
            assert scene.ask(b, "held").status == 409
            time.sleep(0.1)
        first = held.let_go()
        assert told(first) == (201, False)
        assert told(scene.ask(b, "held")) == (201, True)
        assert told(scene.ask(a, "before")) == (201, True)
        world.redis.start()

    scene.world.await_recovery()
    fresh = world.new_host("fresh")
    assert [scene.ask(host, "held").digest for host in (a, b, fresh)] == [first.digest] * 3
    assert len(scene.runs("held")) == len(scene.runs("before")) == 1
    assert scene.findings(Rules(LEASE, rejects=policy == "reject")) == []


@pytest.mark.parametrize("redis", ["persistent", "volatile"])
def test_restart_behind_one_breaker(stage: Stage, redis: str):
    """Redis restarts while A's breaker is open and B's is not: two workers of one host."""
    scene = stage("local", redis=redis, link=True)
    world, a = scene.world, scene.world.hosts[0]
    b = world.new_host("b", shares_with=a.name, direct=True)
    assert world.redis is not None
    assert world.link is not None
    before = scene.ask(a, "before")
    assert told(scene.ask(b, "before")) == (201, True)

    with world.fault(Kind.OUTAGE, "Redis cut off from A"):
        world.link.cut()
        open_breaker(scene, a, "degraded")
        during = scene.ask(a, "during")
        held = Held(scene, a, "held")
        restart_unseen(world, b)
        assert a.state()["status"] == "degraded"

        assert [scene.ask(b, key).digest for key in ("before", "during")] == [before.digest, during.digest]
        assert scene.ask(b, "held").status == 409
        new = scene.ask(b, "new")
        assert told(new) == (201, False)
        assert told(scene.ask(a, "new")) == (201, True)
        ended = held.let_go()
        assert scene.ask(b, "held").digest == ended.digest
        world.link.open()

    world.await_recovery()
    fresh = world.new_host("fresh", direct=True)
    for key, answer in {"before": before, "during": during, "held": ended, "new": new}.items():
        assert [scene.ask(host, key).digest for host in (a, b, fresh)] == [answer.digest] * 3, key
        assert len(scene.runs(key)) == 1, key
    assert scene.findings(Rules(LEASE, rejects=False)) == []


def test_restart_behind_one_breaker_of_another_host(stage: Stage):
    """The same with two hosts that must agree: what A holds in Redis, B neither runs nor forgets."""
    scene = stage("reject", link=True, LEASE=LONG_LEASE)
    world, a = scene.world, scene.world.hosts[0]
    b = world.new_host("b", direct=True)
    assert world.link is not None
    before = scene.ask(a, "before")
    held = Held(scene, a, "held")
    with world.fault(Kind.OUTAGE, "Redis cut off from A"):
        world.link.cut()
        open_breaker(scene, a, "unhealthy")
        restart_unseen(world, b)
        assert a.state()["status"] == "unhealthy"
        calm = time.monotonic() + 2.0
        while time.monotonic() < calm:
            assert scene.ask(b, "held").status in (409, 503)
            time.sleep(0.05)
        assert scene.ask(b, "held").status == 409
        assert scene.ask(b, "before").digest == before.digest
        ended = held.let_go()
        assert told(ended) == (201, False)
        assert scene.ask(b, "held").status == 409
        world.link.open()
    world.await_recovery()
    assert scene.ask(b, "held").digest == ended.digest
    assert len(scene.runs("held")) == len(scene.runs("before")) == 1
    assert scene.findings(Rules(LONG_LEASE, rejects=True)) == []


def restart_unseen(world: World, host: Host) -> None:
    """Restart Redis while a worker stands still: its breaker stays closed, and its connections break."""
    (worker,) = host.workers()
    stop(worker)
    assert world.redis is not None
    world.redis.stop()
    world.redis.start()
    resume(worker)


@pytest.mark.parametrize("redis", ["persistent", "volatile"])
def test_closes_while_running(stage: Stage, redis: str):
    """The breaker closes while a claim made during the outage still runs."""
    scene = stage("local", redis=redis)
    world, a = scene.world, scene.world.hosts[0]
    b, elsewhere = world.new_host("b", shares_with=a.name), world.new_host("elsewhere")
    assert world.redis is not None
    assert told(scene.ask(elsewhere, "elsewhere")) == (201, False)
    with world.fault(Kind.OUTAGE, "Redis killed"):
        world.redis.stop()
        open_breaker(scene, a, "degraded")
        held = Held(scene, a, "held")
        world.redis.start()

    for host in (a, b, elsewhere):
        scene.sees(host, "healthy")
    lease_over = time.monotonic() + 1.5 * LEASE
    while time.monotonic() < lease_over:
        assert {scene.ask(host, "held").status for host in (b, elsewhere)} == {409}
        time.sleep(0.1)
    first = held.let_go()
    assert told(first) == (201, False)
    fresh = world.new_host("fresh")
    assert [scene.ask(host, "held").digest for host in (a, b, elsewhere, fresh)] == [first.digest] * 4
    assert len(scene.runs("held")) == 1
    assert scene.findings(Rules(LEASE, rejects=False)) == []
