"""What is dangerous for records in the servers' own settings, asked now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ..core.store import StoreError
from .nodes import Nodes
from .servers import Server, look

log = logging.getLogger("flask_idempotent")

FRESH_SECONDS: Final = 60.0


class Condition:
    """The dangers of one Redis, for the log and for the health.

    :param nodes: the servers.
    :param clock: monotonic seconds.
    """

    def __init__(self, nodes: Nodes, clock: Callable[[], float] = time.monotonic) -> None:
        self._nodes = nodes
        self._clock = clock
        self._asked: float | None = None
        self._servers: list[Server] = []
        self._logged = False

    def warnings(self) -> tuple[str, ...]:
        """What may lose records, a sentence each with the remedy and without any address; asked once a minute."""
        self._look()
        found = [[*server.dangers().values(), *server.unknowns().values()] for server in self._servers]
        return tuple(dict.fromkeys(text for texts in found for text in texts))

    def log_once(self) -> None:
        """Log the same, with the first contact of a process. Does nothing and costs nothing later."""
        if self._logged:
            return
        self._logged = True
        self._look()
        for server in self._servers:
            for text in server.dangers().values():
                log.warning("idempotency: %s: %s", server.name, text)
            for text in server.unknowns().values():  # a managed service may never tell
                log.info("idempotency: %s: %s", server.name, text)

    def no_log(self) -> None:
        """Leave the log alone: somebody else tells it."""
        self._logged = True

    def _look(self) -> None:
        now = self._clock()
        if self._asked is not None and now - self._asked < FRESH_SECONDS:
            return
        self._asked = now  # first, so that many at once ask once, and servers that do not answer are left alone
        try:
            self._servers = look(self._nodes)
        except StoreError as error:
            log.info("idempotency: the servers' settings are not known: %s", error)
