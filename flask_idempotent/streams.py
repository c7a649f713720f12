"""A streamed response on its way to the client, recorded as it passes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Recorder:
    """Passes chunks on and keeps a copy of the first ``limit`` bytes.

    When the body ends, or has reached its announced length, ``done`` gets the copy, or None when the body was longer
    than the limit. A client that goes away early does not end the work: the rest is read here. When the body raises, or
    does not end for ``patience`` seconds after the client has gone, ``failed`` is called.

    :param body: chunks of bytes or str; closed with the recorder.
    :param limit: bytes kept at most.
    :param length: the body's Content-Length, where it has one: whoever has that much has the answer.
    """

    def __init__(
        self,
        body: Iterable[Any],
        limit: int,
        length: int | None,
        done: Callable[[bytes | None], object],
        failed: Callable[[], object],
        patience: float = 3600.0,
    ) -> None:
        self._settled = False
        self._body = body
        self._chunks: Iterator[Any] = iter(body)
        self._limit = limit
        self._length = length
        self._done = done
        self._failed = failed
        self._patience = patience
        self._kept: list[bytes] | None = []
        self._size = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            chunk = next(self._chunks)
            data = chunk.encode() if isinstance(chunk, str) else bytes(chunk)
        except StopIteration:
            self._settle(complete=True)
            raise
        except BaseException:
            self._settle(complete=False)
            raise
        self._size += len(data)
        if self._kept is not None:
            self._kept.append(data)
            if self._size > self._limit:
                self._kept = None
        if self._size == self._length:
            self._settle(complete=True)
        return data

    def close(self) -> None:
        """Read what the client did not wait for, then close the body."""
        try:
            deadline = time.monotonic() + self._patience
            while not self._settled and time.monotonic() < deadline:
                next(self, None)
            self._settle(complete=False)
        finally:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()

    def __del__(self) -> None:
        """A response whose body was replaced after the view is never closed; its outcome still counts."""
        if not self._settled:
            self.close()

    def _settle(self, *, complete: bool) -> None:
        if self._settled:
            return
        self._settled = True
        if complete:
            self._done(None if self._kept is None else b"".join(self._kept))
        else:
            self._failed()
