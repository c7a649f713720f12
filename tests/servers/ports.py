"""TCP ports for servers: each is held from the moment it is chosen, so that nobody else is given it meanwhile."""

from __future__ import annotations

import os
import random
import socket
import weakref
from typing import Final

# Below what Linux gives to outgoing connections (from 32768 on), the cluster bus included.
FIRST: Final = 12_000
LAST: Final = 21_999
BUS: Final = 10_000  # a cluster's nodes talk to each other on their port plus this
_random: Final = random.SystemRandom()  # hypothesis and tests may seed the usual one


class Port:
    """A free port of this machine.

    A bound socket that does not listen holds it: a connection to it is refused, a server that sets SO_REUSEADDR (Redis
    does) may listen on it, at any time and again after a restart, and no other process is given it.

    :param bus: whether the cluster bus's port is wanted, too.
    """

    def __init__(self, *, bus: bool = False) -> None:
        while True:
            number = _random.randint(FIRST, LAST)
            held = [_hold(each) for each in ((number, number + BUS) if bus else (number,))]
            taken = [each for each in held if each is not None]
            if len(taken) == len(held):
                break
            _release(taken)
        self.number = number
        weakref.finalize(self, _release, taken)


def free_port() -> int:
    """A port where nobody listens at the moment."""
    return Port().number


def _hold(number: int) -> int | None:
    """A file descriptor that holds the port, or None when it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", number))  # without SO_REUSEADDR: fails where another one holds it
        except OSError:
            return None
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", number))
    except OSError:
        holder.close()
        return None
    return holder.detach()


def _release(held: list[int]) -> None:
    for each in held:
        os.close(each)
