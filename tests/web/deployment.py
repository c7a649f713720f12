"""The app of :mod:`.worker` as gunicorn serves it, for tests of leases, forks and pools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from flask import Flask

from ..servers.gunicorn import Gunicorn
from ..servers.standalone import RedisProcess
from .conftest import Client, setting_names
from .worker import create_app


def served(config: dict[str, Any], directory: str, *, use_first: bool = False) -> Flask:
    """The app, for gunicorn.

    :param use_first: whether it is used before it is served: with ``--preload`` in the master, before the fork.
    """
    app = create_app(config, Path(directory))
    if use_first:
        answers = [app.test_client().post("/", headers={"Idempotency-Key": "master"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 201], answers[0].text
        app.extensions["idempotency"].state_of(app).store.wait("idempotency:{nobody}", 5000)
    return app


class Site(Client):
    """A gunicorn, and the directory in which its views note that they ran."""

    def __init__(self, server: Gunicorn, redis: RedisProcess, directory: Path, prefix: str) -> None:
        super().__init__(server.port)
        self.server = server
        self.redis = redis
        self.prefix = prefix  # of its keys in Redis, and of no other's
        self._directory = directory
        self.hold = directory / "hold"  # while this file is there, views wait

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
    app = f"{__name__}:served({setting_names(alone)!r}, {str(notes)!r}, use_first={use_first})"
    server = Gunicorn(home, app, kind=kind, workers=workers, threads=threads, preload=preload)
    try:
        yield Site(server.start(), redis, notes, prefix)
    finally:
        server.stop()
