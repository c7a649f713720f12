"""The sentinels, who know where the master is (https://redis.io/docs/latest/develop/reference/sentinel-clients/)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from redis import exceptions

from ..core.forks import PerProcess
from .inquiry import Inquiry
from .pool import Place, Pool
from .wire import Broken, Reply, ServerError, pack

PATIENCE: Final = 1.0  # seconds to wait for the one connection to a sentinel; only one thread uses it


class NoMaster(Broken):
    """The sentinels answer that there is no master at present."""


class Sentinels:
    """Those who watch one master and its replicas. Who answered last is asked first.

    :param connects: for each of them, makes an unconnected redis-py connection.
    :param service: the name that they know the master by.
    """

    def __init__(self, connects: Sequence[Callable[[], Any]], service: str) -> None:
        self.service = service
        self._question = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service) + pack("SENTINEL", "MASTER", service)
        self._pools = PerProcess(lambda: [Pool(connect, 1, PATIENCE) for connect in connects])
        self._inquiry = PerProcess(lambda: Inquiry(self._ask))

    def master(self) -> Place:
        """Where the master is. One thread asks for all that want to know at the same moment.

        :raises OSError: none of them answers, or they know of none that is up.
        :raises redis.RedisError: they do not let this client in.
        :raises ServerError: they do not know the name.
        """
        return self._inquiry()()

    def close(self) -> None:
        """Hang up."""
        for pool in self._pools():
            pool.close()

    def _ask(self) -> Place:
        pools = self._pools()
        failures: list[Exception] = []
        for pool in list(pools):
            try:
                place = _read(pool.exchange(self._question, 2))
            except (OSError, exceptions.RedisError, ServerError) as error:
                failures.append(error)
                continue
            pools.remove(pool)
            pools.insert(0, pool)
            return place
        raise max(failures, key=_weight, default=NoMaster("no sentinels are named"))


def _weight(failure: Exception) -> int:
    """An answer tells more than silence: that this client is refused, or that there is no master."""
    if isinstance(failure, ServerError | exceptions.AuthenticationError | exceptions.ResponseError):
        return 2
    return int(isinstance(failure, NoMaster))


def _read(replies: list[Reply]) -> Place:
    """The master's address out of a sentinel's answers.

    While a failover comes to its end, the first is ahead of the second.
    """
    address, about = replies
    for reply in replies:
        if isinstance(reply, ServerError):
            raise reply
    if address is None:
        raise NoMaster("the sentinels do not know the master")
    host, port = (each.decode() for each in address)
    state = dict(zip(about[::2], about[1::2], strict=False))
    flags = state.get(b"flags", b"").decode().split(",")
    same = (state.get(b"ip"), state.get(b"port")) == tuple(address)
    if same and {"s_down", "o_down"} & set(flags):
        raise NoMaster(f"the sentinels say that the master is down: {','.join(flags)}")
    return host, int(port)
