"""A Sentinel set is one: its sentinels agree, its replicas follow, and when the master goes another one takes over."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from .process import until
from .sentinel import SentinelSet

pytestmark = pytest.mark.redis

NewSentinel = Callable[..., SentinelSet]


def test_the_set_is_empty_agrees_on_its_master_and_copies_to_both_replicas(sentinel_set: SentinelSet) -> None:
    assert {sentinel_set.master_address(each) for each in sentinel_set.sentinels} == {sentinel_set.master_address()}
    assert len(sentinel_set.replicas()) == 2
    with sentinel_set.master().client() as client:
        assert client.dbsize() == 0
        client.set("key", "value")
        assert client.wait(2, 2000) == 2
    for replica in sentinel_set.replicas():
        with replica.client() as client:
            assert client.get("key") == b"value"


def test_a_set_starts_quickly(new_sentinel: NewSentinel) -> None:
    began = time.monotonic()
    new_sentinel().start()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("how", ["kill_master", "freeze_master"])
def test_a_master_that_goes_is_replaced_and_follows_when_it_is_back(new_sentinel: NewSentinel, how: str) -> None:
    sentinel_set = new_sentinel().start()
    with sentinel_set.client() as client:
        client.set("key", "value")
        assert client.wait(2, 2000) == 2
        began = time.monotonic()
        old = getattr(sentinel_set, how)()
        new = sentinel_set.await_failover(old)
        assert time.monotonic() - began < 10
        assert new is sentinel_set.master() is not old
        assert until(lambda: read(client), "the client to find the new master") == b"value"
        client.set("key", "newer")
    old.thaw() if old.frozen else old.start()
    sentinel_set.await_healthy()
    assert sentinel_set.master() is new
    with old.client() as client:
        assert client.get("key") == b"newer"


def read(client: redis.Redis) -> bytes | None:
    try:
        return client.get("key")
    except (redis.ConnectionError, redis.TimeoutError):
        return None


def test_a_set_that_lost_its_quorum_replaces_nobody(new_sentinel: NewSentinel) -> None:
    sentinel_set = new_sentinel().start()
    for sentinel in sentinel_set.sentinels[1:]:
        sentinel.stop()
    master = sentinel_set.master_address()
    sentinel_set.kill_master()
    left = sentinel_set.sentinels[0]
    until(lambda: "s_down" in left.master()["flags"], "the master to count as down")
    assert "o_down" not in left.master()["flags"]
    assert sentinel_set.master_address() == master


def test_a_set_with_passwords_wants_them_everywhere(new_sentinel: NewSentinel) -> None:
    sentinel_set = new_sentinel(password="of servers", sentinel_password="of sentinels").start()
    for process in (*sentinel_set.servers, *sentinel_set.sentinels):
        with redis.from_url(f"redis://127.0.0.1:{process.port}") as client, pytest.raises(redis.AuthenticationError):
            client.ping()
    with sentinel_set.client() as client:
        assert client.set("key", "value")
    sentinel_set.await_failover(sentinel_set.kill_master())
