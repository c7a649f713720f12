"""One question that many have at the same moment, such as where the master is now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from .wire import Broken

Answer = TypeVar("Answer")


class Inquiry(Generic[Answer]):
    """One of those who ask asks; the others wait for the same answer, or get the same error.

    :param ask: puts the question, within a time limit of its own.
    """

    def __init__(self, ask: Callable[[], Answer]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._asking: Future[Answer] | None = None

    def __call__(self) -> Answer:
        """The answer."""
        with self._lock:
            asking = self._asking
            if asking is None:
                mine = self._asking = Future()
        return self._put(mine) if asking is None else asking.result()

    def _put(self, mine: Future[Answer]) -> Answer:
        try:
            answer = self._ask()
        except BaseException as error:  # those who wait must not wait for ever, and are not killed with this one
            mine.set_exception(error if isinstance(error, Exception) else Broken("who asked was stopped"))
            raise
        else:
            mine.set_result(answer)
            return answer
        finally:
            with self._lock:
                self._asking = None
