"""A Redis Cluster for tests: its masters, replicas where they are wanted, and slots that the test can move."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import redis
from redis.cluster import ClusterNode

from .process import until
from .standalone import RedisProcess

SLOTS: Final = 16384
NODE_TIMEOUT_MS: Final = 1000  # of silence, after which a node counts as failing


class Cluster:
    """Masters with an equal share of the slots each, the first with the first.

    :param options: of every node.
    :param replicas: of each master.
    :param password: of every node.
    """

    def __init__(
        self, directory: Path, *options: str, masters: int = 3, replicas: int = 0, password: str | None = None
    ) -> None:
        self.password = password
        cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS)]
        self.nodes: list[RedisProcess] = []
        for number in range(masters * (1 + replicas)):
            home = directory / f"node-{number}"
            home.mkdir(parents=True)
            self.nodes.append(RedisProcess(home, *cluster, *options, password=password, bus=True))
        self.masters, self.replicas = self.nodes[:masters], self.nodes[masters:]
        self.ids: dict[RedisProcess, str] = {}  # as the nodes name themselves

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Of the nodes, as a client is told them."""
        return [("127.0.0.1", node.port) for node in self.nodes]

    def start(self) -> Self:
        """Start all nodes, make them one cluster when they are none yet, and wait until it serves."""
        try:
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.await_ready()
            if not self.ids:
                self._create()
            self.await_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Kill all nodes. They keep what they know of each other, but no keys unless they are persistent."""
        for node in self.nodes:
            node.stop()

    def _create(self) -> None:
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                self.ids[node] = client.execute_command("CLUSTER", "MYID").decode()
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if node in self.masters:
                    client.cluster("ADDSLOTS", *_share(number, len(self.masters)))
                for other in self.nodes[:number]:  # all with all, instead of waiting for gossip
                    client.cluster("MEET", "127.0.0.1", other.port)
        until(lambda: all(self._known(node) == len(self.nodes) for node in self.nodes), "acquaintance")
        for number, replica in enumerate(self.replicas):
            master = self.ids[self.masters[number % len(self.masters)]]
            with replica.client() as client:
                client.cluster("REPLICATE", master)

    def _known(self, node: RedisProcess) -> int:
        """How many nodes a node knows and has shaken hands with."""
        with node.client() as client:
            known = client.execute_command("CLUSTER NODES").values()
        return sum("handshake" not in each["flags"] for each in known)

    def await_healthy(self) -> None:
        """Wait until every node that answers says that the cluster serves, and knows who has which slots."""
        until(lambda: all(self._serves(node) for node in self._alive()), "cluster_state:ok everywhere")
        until(lambda: len({self._view(node) for node in self._alive()}) == 1, "agreement about the slots")

    def _serves(self, node: RedisProcess) -> bool:
        with node.client() as client:
            ok = client.cluster("INFO")["cluster_state"] == "ok"
            replication = client.info("replication")
        return ok and (node not in self.replicas or replication.get("master_link_status", "up") == "up")

    def _view(self, node: RedisProcess) -> tuple[Any, ...]:
        """Which slots are where, and which replicas are whose, as a node knows it."""
        with node.client() as client:
            known = client.execute_command("CLUSTER NODES")
        return tuple(sorted((name, each["master_id"], str(each["slots"])) for name, each in known.items()))

    def slot_of(self, key: str) -> int:
        """The slot of a key."""
        with self.nodes[0].client() as client:
            return int(client.execute_command("CLUSTER KEYSLOT", key))

    def master_of(self, slot: int) -> RedisProcess:
        """The master that has a slot, as the first node that answers knows it."""
        node_id = next(each[4] for each in self._slots(self._alive()[0]) if each[0] <= slot <= each[1])
        return next(node for node in self.nodes if self.ids[node] == node_id)

    def _slots(self, asked: RedisProcess) -> list[tuple[int, int, str, int, str]]:
        """First and last slot, and host, port and id of their master, as a node tells clients."""
        with asked.client() as client:
            answer = client.execute_command("CLUSTER", "SLOTS")
        return [(first, last, host.decode(), port, name.decode()) for first, last, (host, port, name, *_), *_ in answer]

    def _alive(self) -> list[RedisProcess]:
        """The nodes that answer."""
        return [node for node in self.nodes if node.running and not node.frozen]

    def announce(self, node: RedisProcess, port: int) -> None:
        """Have clients told another port for a node, such as a Link's. The nodes themselves do not use it."""
        with node.client() as client:
            client.config_set("cluster-announce-port", port)

        def told(asked: RedisProcess) -> bool:
            return any(each[3:] == (port, self.ids[node]) for each in self._slots(asked))

        until(lambda: all(told(each) for each in self.nodes), "the other port")

    def await_takeover(self, slot: int, old: RedisProcess) -> RedisProcess:
        """Wait until a replica has a slot instead of its old master, which is gone, and return it."""

        def taken() -> bool:
            return self.master_of(slot) is not old and all(self._serves(node) for node in self._alive())

        until(taken, "a replica to take over")
        return self.master_of(slot)

    def begin_move(self, slot: int, to: RedisProcess) -> None:
        """Open a slot for moving. Keys that its old master has stay there; for others it answers ASK."""
        old = self.master_of(slot)
        with old.client() as source, to.client() as target:
            target.cluster("SETSLOT", slot, "IMPORTING", self.ids[old])
            source.cluster("SETSLOT", slot, "MIGRATING", self.ids[to])

    def finish_move(self, slot: int, to: RedisProcess) -> None:
        """Bring over the keys of a slot that is open for moving, and close it. Its old master answers MOVED."""
        old = self.master_of(slot)
        with old.client() as source, to.client() as target:
            while keys := source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                auth = () if self.password is None else ("AUTH", self.password)
                source.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, *auth, "KEYS", *keys)
            for client in (target, source):
                client.cluster("SETSLOT", slot, "NODE", self.ids[to])
        self.await_healthy()

    def move(self, slot: int, to: RedisProcess) -> None:
        """Move a slot with its keys."""
        self.begin_move(slot, to)
        self.finish_move(slot, to)

    def flush(self) -> None:
        """Empty every master."""
        for node in self.masters:
            with node.client() as client:
                client.flushall()

    def client(self, **settings: Any) -> redis.RedisCluster:
        """A client of redis-py's that knows the whole cluster."""
        usual = {"password": self.password, "protocol": 2, "socket_timeout": 5}
        nodes = [ClusterNode(host, port) for host, port in self.addresses]
        return redis.RedisCluster(startup_nodes=nodes, **usual | settings)


def _share(number: int, masters: int) -> Sequence[int]:
    return range(SLOTS * number // masters, SLOTS * (number + 1) // masters)
