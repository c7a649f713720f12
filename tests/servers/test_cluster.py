"""A Cluster is one: it sends clients on, moves slots, stops serving when a part is gone, and heals."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, MovedError
from redis.retry import Retry

from .cluster import SLOTS, Cluster
from .link import Link
from .process import until
from .standalone import RedisProcess

pytestmark = pytest.mark.redis

NewCluster = Callable[..., Cluster]


def next_to(cluster: Cluster, node: RedisProcess) -> RedisProcess:
    """Another master than this."""
    return cluster.masters[(cluster.masters.index(node) + 1) % len(cluster.masters)]


def test_a_cluster_is_empty_and_every_slot_has_one_master(cluster: Cluster) -> None:
    assert [cluster.master_of(slot) for slot in (0, SLOTS // 2, SLOTS - 1)] == cluster.masters
    for node in cluster.nodes:
        with node.client() as client:
            assert client.dbsize() == 0
            assert int(client.cluster("INFO")["cluster_slots_ok"]) == SLOTS


def test_a_node_without_the_slot_sends_the_client_to_the_one_that_has_it(cluster: Cluster) -> None:
    slot = cluster.slot_of("key")
    master = cluster.master_of(slot)
    with next_to(cluster, master).client() as wrong, pytest.raises(MovedError) as caught:
        wrong.set("key", "value")
    assert (caught.value.slot_id, caught.value.port) == (slot, master.port)
    with cluster.client() as client:
        client.set("key", "value")
    with master.client() as right:
        assert right.get("key") == b"value"


def test_a_cluster_starts_quickly(new_cluster: NewCluster) -> None:
    began = time.monotonic()
    new_cluster().start()
    assert time.monotonic() - began < 10


def test_a_slot_moves_with_its_keys(new_cluster: NewCluster) -> None:
    cluster = new_cluster(password="secret").start()
    slot = cluster.slot_of("{tag}1")
    old = cluster.master_of(slot)
    new = next_to(cluster, old)
    with old.client() as source, new.client() as target:
        for number in range(150):
            source.set(f"{{tag}}{number}", number)
        cluster.begin_move(slot, new)
        assert source.get("{tag}1") == b"1"
        with pytest.raises(AskError) as asked:
            source.get("{tag}none")
        assert asked.value.port == new.port
        with pytest.raises(MovedError):
            target.get("{tag}none")
        target.execute_command("ASKING")
        assert target.execute_command("SET", "{tag}none", "value")
        cluster.finish_move(slot, new)
        assert target.get("{tag}149") == b"149"
        assert target.get("{tag}none") == b"value"
        with pytest.raises(MovedError):
            source.get("{tag}1")
    assert cluster.master_of(slot) is new


def test_a_cluster_without_a_part_serves_nothing_and_heals(new_cluster: NewCluster) -> None:
    cluster = new_cluster().start()
    gone = cluster.masters[0]
    gone.stop()
    with cluster.masters[1].client() as client:
        until(lambda: client.cluster("INFO")["cluster_state"] == "fail", "the cluster to notice")
        with pytest.raises(ClusterDownError):
            client.set("key", "value")
    gone.start()
    cluster.await_healthy()
    cluster.stop()
    cluster.start()
    with cluster.client() as client:
        assert client.set("key", "value")


def test_a_replica_acknowledges_writes_unless_it_is_frozen_and_takes_over(new_cluster: NewCluster) -> None:
    cluster = new_cluster(replicas=1, password="secret").start()
    slot = cluster.slot_of("key")
    master = cluster.master_of(slot)
    replica = cluster.replicas[cluster.masters.index(master)]
    with master.client() as client:
        client.set("key", "value")
        assert client.wait(1, 2000) == 1
        replica.freeze()
        client.set("key", "newer")
        assert client.wait(1, 200) == 0
        replica.thaw()
        until(lambda: client.wait(1, 200) == 1, "the replica to catch up")
    cluster.await_healthy()
    master.stop()
    assert cluster.await_takeover(slot, master) is replica
    with replica.client() as client:
        assert client.get("key") == b"newer"
        assert client.set("key", "newest")
    master.start()
    cluster.await_healthy()
    assert cluster.master_of(slot) is replica


def test_clients_alone_can_be_cut_off_from_a_node_by_a_link(new_cluster: NewCluster) -> None:
    cluster = new_cluster().start()
    slot = cluster.slot_of("key")
    node = cluster.master_of(slot)
    link = Link(node.port)
    try:
        cluster.announce(node, link.port)
        with next_to(cluster, node).client() as other, pytest.raises(MovedError) as caught:
            other.get("key")
        assert caught.value.port == link.port
        with redis.Redis(port=link.port, retry=Retry(NoBackoff(), 0)) as client:
            assert client.set("key", "value")
            assert link.asked(b"\r\nSET\r\n") == 1
            link.cut()
            with pytest.raises(redis.ConnectionError):
                client.get("key")
        cluster.await_healthy()
    finally:
        link.close()
