"""A gunicorn that serves the app of :mod:`.worker`, for tests of leases and forks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from ..servers.gunicorn import Gunicorn
from ..servers.standalone import RedisProcess
from .conftest import Client, setting_names


class Site(Client):
    """A gunicorn, and the directory in which its views note that they ran."""

    def __init__(self, server: Gunicorn, redis: RedisProcess, directory: Path, prefix: str) -> None:
        super().__init__(server.port)
        self.server = server
        self.redis = redis
        self.prefix = prefix  # of its keys in Redis, and of no other's
        self._directory = directory
        self.hold = directory / "hold"  # while this file is there, views wait

    def file(self, name: str) -> Path:
        """One of those that tell the views what to do; see :mod:`.worker`."""
        return self._directory / name

    def holds(self) -> list[Path]:
        """Those that there are and that views wait for."""
        return list(self._directory.glob("hold*"))

    def forget(self) -> None:
        """Remove all files."""
        for file in self._directory.iterdir():
            file.unlink()

    def lines(self, word: str) -> list[str]:
        """What the views have noted: ``began`` or ``ended``, one line for each."""
        noted = self._directory / word
        return noted.read_text().splitlines() if noted.exists() else []


@contextmanager
def deployed(
    directory: Path,
    redis: RedisProcess,
    *,
    kind: str = "gthread",
    workers: int = 2,
    threads: int = 16,
    preload: bool = False,
    use_first: bool = False,
    **settings: Any,
) -> Iterator[Site]:
    """Serve the app on Redis alone: what the workers agree on, they agree on there.

    :param settings: ``IDEMPOTENCY_*`` in lower case.
    """
    home, notes = directory / "gunicorn", directory / "notes"
    home.mkdir()
    notes.mkdir()
    prefix = f"{uuid4()}:"
    alone = {"local_tier": None, "on_outage": "reject", "store_timeout": 3, "key_prefix": prefix, **settings}
    alone |= {"cache_redis_url": redis.url}
    app = f"tests.web.served:served({setting_names(alone)!r}, {str(notes)!r}, use_first={use_first})"
    server = Gunicorn(home, app, kind=kind, workers=workers, threads=threads, preload=preload)
    try:
        yield Site(server.start(), redis, notes, prefix)
    finally:
        server.stop()
