"""The masters of a Redis Cluster, by slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from redis import Redis
from redis.connection import Connection
from redis.crc import key_slot

from ..core.forks import PerProcess
from .inquiry import Inquiry
from .nodes import LOST, Nodes, Settings
from .pool import Place
from .wire import NOTHING, Beside, Broken, Reply, ServerError, pack

REDIRECTS: Final = 4
PAUSE_SECONDS: Final = 0.02  # before a command is tried again
ASKING: Final = pack("ASKING")
Ranges = list[tuple[int, int, Place]]  # first slot, last slot, master


class ClusterNodes(Nodes):
    """The masters of a Cluster. Who has which slots is asked when it is not known, and after a failure.

    :param startup: servers to ask for the others.
    """

    replicated = True

    def __init__(
        self,
        startup: Sequence[Place],
        connection_class: type[Connection],
        settings: Settings,
        limit: int,
        patience: float,
    ) -> None:
        super().__init__(connection_class, settings, limit, patience)
        self._startup = tuple(startup)
        self._slots: Ranges = []
        self._moved: dict[int, Place] = {}
        self._known: tuple[Place, ...] = ()  # all servers, as one of them last told
        self._silent: frozenset[Place] = frozenset()  # who did not answer when last asked
        self._discovery = PerProcess(lambda: Inquiry(self._discover))

    @property
    def name(self) -> str:
        """The servers that are asked first."""
        return "cluster " + ",".join(f"{host}:{port}" for host, port in self._startup)

    def exchange(
        self, key: str, commands: bytes, count: int, *, urgent: bool = False, beside: Beside | None = None
    ) -> list[Reply]:
        """See :class:`Nodes`. Follows redirections, and goes to the new master where one has taken over.

        Two keys of a slot that moves cannot be had until both have moved: that is waited for within the time limit.
        """
        slot, deadline = key_slot(key.encode()), time.monotonic() + self.timeout
        while True:
            replies = self._route(slot, commands, count, urgent, beside)
            if not any(map(_is_premature, replies)) or time.monotonic() > deadline:
                return replies
            time.sleep(PAUSE_SECONDS)

    def _route(self, slot: int, commands: bytes, count: int, urgent: bool, beside: Beside | None) -> list[Reply]:
        place = self._master_of(slot)
        try:
            return self._from(place, commands, count, urgent, beside)
        except LOST:
            if (other := self._master_of(slot)) == place:
                raise
        return self._from(other, commands, count, urgent, beside)

    def exchange_all(self, commands: Sequence[tuple[str, bytes]]) -> list[Reply]:
        """See :class:`Nodes`. What was redirected is sent again by itself. A server that is away holds up no other's.

        :raises OSError: a server did not answer; what was for others has been sent.
        """
        replies: list[Reply] = [None] * len(commands)
        failures: list[Exception] = []
        places: dict[Place, list[int]] = {}
        for number, (key, _) in enumerate(commands):
            try:
                places.setdefault(self._master_of(key_slot(key.encode())), []).append(number)
            except (*LOST, ServerError) as error:
                failures.append(error)
        for place, numbers in places.items():
            try:
                self._exchange_some(place, numbers, commands, replies)
            except LOST as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return replies

    def doubt(self, key: str) -> None:
        """See :class:`Nodes`."""
        slot = key_slot(key.encode())
        if (place := self._moved.get(slot) or _master_in(self._slots, slot)) is not None:
            self._forget(place)

    def client(self) -> Redis:
        """See :class:`Nodes`. What is published on one server is heard on all."""
        return self._client_at(self._master_of(0))

    def each(self, commands: bytes, count: int, *, urgent: bool = True) -> dict[str, list[Reply]]:
        """See :class:`Nodes`."""
        self._master_of(0)
        masters = sorted({place for _, _, place in self._slots})
        return {f"{host}:{port}": self._at((host, port), commands, count, urgent) for host, port in masters}

    def _exchange_some(
        self, place: Place, numbers: list[int], commands: Sequence[tuple[str, bytes]], replies: list[Reply]
    ) -> None:
        packed = b"".join(commands[number][1] for number in numbers)
        for number, reply in zip(numbers, self._at(place, packed, len(numbers), True), strict=True):
            if _redirects(reply):
                self._follow(reply, place)
                (reply,) = self.exchange(*commands[number], 1, urgent=True)
            replies[number] = reply

    def _from(self, place: Place, commands: bytes, count: int, urgent: bool, beside: Beside | None) -> list[Reply]:
        """Ask a server, and whomever it sends us to."""
        asking = False
        for _ in range(REDIRECTS):
            replies = self._at(place, commands, count, urgent, beside, asking)
            redirection = next((one for one in replies if _redirects(one)), None)
            if redirection is None:
                break
            place, asking = self._follow(redirection, place)
        return replies

    def _at(
        self,
        place: Place,
        commands: bytes,
        count: int,
        urgent: bool,
        beside: Beside | None = None,
        asking: bool = False,
    ) -> list[Reply]:
        """Ask one server.

        :param asking: it is told that we were sent; goes for the next command, which is the one about the key.
        """
        if asking:
            more, meanwhile = beside or NOTHING
            commands, count = ASKING + commands, count + 1
            beside = Beside(None if more is None else lambda replies: more(replies[1:]), meanwhile)
        try:
            replies = self._pools()[place].exchange(commands, count, urgent=urgent, beside=beside)
        except LOST:
            self._forget(place)
            raise
        if place in self._silent:
            self._silent -= {place}
        return replies[1:] if asking else replies

    def _forget(self, place: Place) -> None:
        """Another server may have taken over from one that does not answer."""
        self._silent |= {place}
        self._slots = [each for each in self._slots if each[2] != place]
        self._moved = {slot: master for slot, master in self._moved.items() if master != place}

    def _follow(self, redirection: ServerError, origin: Place) -> tuple[Place, bool]:
        """Where a redirection points to, and whether the server there must be told that we were sent."""
        number, _, target = redirection.detail.partition(" ")
        host, _, port = target.rpartition(":")
        place = (host or origin[0], int(port))
        if redirection.code == "MOVED":
            self._moved[int(number)] = place
        return place, redirection.code == "ASK"

    def _master_of(self, slot: int) -> Place:
        known = self._moved.get(slot) or _master_in(self._slots, slot)
        found = known or _master_in(self._discovery()(), slot)
        if found is None:
            raise ServerError("CLUSTERDOWN no server of the cluster has this slot")
        return found

    def _discover(self) -> Ranges:
        """Ask the servers that we know for those that there are, last of all those that did not answer before."""
        failure: Exception = Broken("no server of the cluster is known")
        known = dict.fromkeys((*self._pools(), *self._startup, *self._known))
        for place in sorted(known, key=self._silent.__contains__):
            try:
                (reply,) = self._at(place, pack("CLUSTER", "SLOTS"), 1, True)
            except LOST as error:
                failure = error
                continue
            if isinstance(reply, ServerError):
                failure = reply
                continue
            found = [(first, last, _place(master, place)) for first, last, master, *_ in reply]
            if found:
                self._slots, self._moved = found, {}
                self._known = tuple(_place(server, place) for _, _, *servers in reply for server in servers)
                self._pools().only({each for _, _, each in found} | set(self._startup))
                return found
        raise failure


def _master_in(ranges: Ranges, slot: int) -> Place | None:
    return next((place for first, last, place in ranges if first <= slot <= last), None)


def _redirects(reply: Reply) -> bool:
    return isinstance(reply, ServerError) and reply.code in ("MOVED", "ASK")


def _is_premature(reply: Reply) -> bool:
    """Of two keys of a slot that moves, one is here and one is not."""
    return isinstance(reply, ServerError) and reply.code == "TRYAGAIN"


def _place(server: list[Any], asked: Place) -> Place:
    """A server of CLUSTER SLOTS; without a name of its own it is the one that was asked."""
    return (server[0] or b"").decode() or asked[0], int(server[1])
