"""More requests at once than connections to Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask

from flask_idempotent import Idempotency, idempotent

from ..servers.standalone import RedisProcess
from .conftest import REPLAYED, Runs, Server, redis_config, setting_names

pytestmark = pytest.mark.redis

CLIENTS = 200
CONNECTIONS = 10


@pytest.fixture
def site(
    redis_server: RedisProcess, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> Callable[..., Server]:
    """Serves a guarded view on Redis alone, with few connections."""

    def start(**settings: Any) -> Server:
        alone = setting_names({"local_tier": None, "on_outage": "reject", **settings})
        options = {"IDEMPOTENCY_CACHE_OPTIONS": {"max_connections": CONNECTIONS}}
        app = bare_app(**redis_config(redis_server), **alone, **options)
        Idempotency(app)
        app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
        return serve(app)

    return start


def connections(redis: RedisProcess) -> int:
    with redis.client() as client:
        return len(client.client_list()) - 1


def test_two_hundred_requests_at_once_all_get_through_ten_connections(
    site: Callable[..., Server], redis_server: RedisProcess, runs: Runs
) -> None:
    server = site()
    with ThreadPoolExecutor(CLIENTS) as clients, redis_server.client() as redis:
        redis.client_pause(300, all=True)  # so that all of them want a connection at once
        answers = list(clients.map(lambda number: server.post(key=f"k-{number}"), range(CLIENTS)))
        again = list(clients.map(lambda number: server.post(key=f"k-{number}"), range(CLIENTS)))
    assert Counter(answer.status_code for answer in answers + again) == {201: 2 * CLIENTS}
    assert [REPLAYED in answer.headers for answer in answers + again] == [False] * CLIENTS + [True] * CLIENTS
    assert runs.count == CLIENTS
    assert connections(redis_server) <= CONNECTIONS + 1  # the probe's


def test_two_hundred_duplicates_at_once_wait_over_ten_connections_and_one_that_listens(
    site: Callable[..., Server], redis_server: RedisProcess, runs: Runs
) -> None:
    server = site(wait=15)
    with ThreadPoolExecutor(CLIENTS) as clients, redis_server.client() as redis:
        redis.client_pause(300, all=True)
        answers = list(clients.map(lambda _: server.post(key="k"), range(CLIENTS)))
    assert Counter(answer.status_code for answer in answers) == {201: CLIENTS}
    assert Counter(REPLAYED in answer.headers for answer in answers) == {True: CLIENTS - 1, False: 1}
    assert runs.count == 1
    assert connections(redis_server) <= CONNECTIONS + 2  # the listener's, and the probe's
