"""Scripts and commands as they are put to the servers, with every error as the one that the guard knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from .failures import ERRORS, store_error
from .nodes import Nodes
from .scripts import Script
from .wire import Beside, Reply, ServerError, pack


class Questions:
    """What one may ask the servers of one Redis.

    :param nodes: the servers.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes

    def _run(self, script: Script, key: str, *args: bytes | int) -> Reply:
        (answer,) = self._send(script, key, args)
        return answer

    def _send(self, script: Script, key: str, args: Sequence[bytes | int], beside: Beside | None = None) -> list[Reply]:
        try:
            replies = self.nodes.exchange(key, script.call(key, *args), 1, beside=beside)
            if isinstance(replies[0], ServerError) and _is_unknown(replies[0]):
                replies = self.nodes.exchange(key, script.whole(key, *args), 1, beside=beside)
            for reply in replies:
                if isinstance(reply, ServerError):
                    raise reply
        except ERRORS as error:
            raise store_error(error) from error
        return replies

    def _run_all(self, script: Script, calls: Sequence[tuple[str, Sequence[bytes | int]]]) -> list[Reply]:
        """Run a script for each key; an error is returned in its place."""
        if not calls:
            return []
        with translated:
            replies = self.nodes.exchange_all([(key, script.call(key, *args)) for key, args in calls])
            if any(map(_is_unknown, replies)):
                replies = self.nodes.exchange_all([(key, script.whole(key, *args)) for key, args in calls])
            return replies

    def _command(self, name: str, key: str, *args: bytes | str | int) -> Reply:
        with translated:
            (reply,) = self.nodes.exchange(key, pack(name, key, *args), 1)
            if isinstance(reply, ServerError):
                raise reply
            return reply


class _Translated:
    """Turns the client's and the server's errors into the one error that the guard knows."""

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, ERRORS):
            raise store_error(error) from error


translated: Final = _Translated()


def _is_unknown(reply: Reply) -> bool:
    return isinstance(reply, ServerError) and reply.code == "NOSCRIPT"
