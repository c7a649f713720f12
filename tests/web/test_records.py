"""What a record costs in Redis, and what becomes of one that a later version has written."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response

from flask_idempotent import Idempotency, idempotent

from ..servers.standalone import RedisProcess
from .conftest import Runs, Server, assert_original, assert_problem, assert_replay, redis_config, setting_names

pytestmark = pytest.mark.redis

OVERHEAD = 250  # bytes per record at most, its key included
MAX_BODY = 1024 * 1024


class Shop:
    """A server of one guarded view, and what it has left in Redis."""

    def __init__(self, server: Server, redis: RedisProcess, body: list[bytes]) -> None:
        self.server = server
        self._redis = redis
        self._body = body

    def keep(self, body: bytes) -> None:
        """Have a view answer with this body, and its duplicate."""
        self._redis.flush()
        self._body[:] = [body]
        first, again = self.server.post(key="k"), self.server.post(key="k")
        assert_original(first)
        assert first.content == body
        assert_replay(again, first)
        assert "Idempotency-Replay" not in again.headers, "it is all there"

    def sizes(self) -> tuple[int, int]:
        """Bytes of the record and its key, and the memory that the server uses for them."""
        with self._redis.client() as client:
            (key,) = client.keys("*")
            return len(key) + client.strlen(key), client.memory_usage(key)


@pytest.fixture
def open_shop(
    redis_server: RedisProcess, bare_app: Callable[..., Flask], serve: Callable[..., Server]
) -> Callable[..., Shop]:
    def start(runs: Runs | None = None, **settings: Any) -> Shop:
        alone = setting_names({"local_tier": None, "on_outage": "reject", **settings})
        app, body = bare_app(**redis_config(redis_server), **alone), [b""]
        Idempotency(app)

        @app.post("/")
        @idempotent
        def view() -> Response:
            if runs is not None:
                runs()
            return Response(body[0], 201, {"Location": "/orders/17"}, mimetype="application/json")

        return Shop(serve(app), redis_server, body)

    return start


@pytest.mark.parametrize("size", [0, 1, 50, 200, 1000, 1025, 5000, 20_000, 100_000, MAX_BODY])
def test_a_record_is_hardly_larger_than_its_body(open_shop: Callable[..., Shop], size: int) -> None:
    """The body is random, so that compression gains nothing: the worst there is."""
    shop = open_shop()
    shop.keep(os.urandom(size))
    used, memory = shop.sizes()
    assert used <= size + OVERHEAD
    assert memory <= (size + OVERHEAD) * 1.25, "the allocator's sizes are up to a quarter apart"


@pytest.mark.parametrize("body", [bytes(MAX_BODY), os.urandom(MAX_BODY), b"\xc3\xa4" * (MAX_BODY // 2)])
def test_a_body_of_one_mebibyte_comes_back_byte_for_byte(open_shop: Callable[..., Shop], body: bytes) -> None:
    open_shop().keep(body)


def test_compression_is_used_where_it_pays(open_shop: Callable[..., Shop]) -> None:
    shop, text = open_shop(), b'{"order": 17, "state": "paid", "lines": [1, 2, 3]},' * 400
    shop.keep(text)
    used, memory = shop.sizes()
    assert used < len(text) / 10
    assert memory < len(text) / 10
    raw = open_shop(compress_over=MAX_BODY)
    raw.keep(text)
    assert raw.sizes()[0] > len(text)


def test_what_is_small_is_not_compressed(open_shop: Callable[..., Shop]) -> None:
    shop, text = open_shop(), b"a" * 800
    shop.keep(text)
    assert shop.sizes()[0] > len(text)


@pytest.mark.parametrize("state", [b"P", b"F", b"D"], ids=["running", "failed", "done"])
@pytest.mark.parametrize("wait", [0, 5])
def test_a_record_of_a_later_version_is_left_to_later_workers_whatever_it_says(
    open_shop: Callable[..., Shop], redis_server: RedisProcess, runs: Runs, state: bytes, wait: int
) -> None:
    """A rolling deploy: new workers write what old ones cannot read, and both serve at the same time."""
    shop = open_shop(runs, wait=wait)
    shop.keep(b"{}")
    with redis_server.client() as client:
        (key,) = client.keys("*")
        record = client.get(key)
        later = bytes([record[0] + 1]) + state + record[2:]
        client.set(key, later, px=60_000)
        for _ in range(2):
            refused = shop.server.post(key="k")
            assert assert_problem(refused, "store-unavailable")["retryable"] is True
            assert int(refused.headers["Retry-After"]) >= 1
        assert client.get(key) == later
        client.set(key, record, px=60_000)
    assert shop.server.post(key="k").headers["Idempotent-Replayed"] == "true"
    assert runs.count == 1
