"""idempotency-kit: the coroutine behind a Starlette view, decorated with ``async_idempotent``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from idempotency_kit import (
    AsyncIdempotencyCoordinator,
    IdempotencyDomainService,
    JsonResultAdapter,
    async_idempotent,
)
from idempotency_kit.infra.storage.redis.aio import RedisAsyncIdempotencyRepository
from redis.asyncio import Redis
from starlette.responses import JSONResponse

from tests.servers.standalone import RedisProcess

from .. import asgi
from ..requests import View
from ..subject import Subject


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Over Redis."""
    view = View()
    repository = RedisAsyncIdempotencyRepository(Redis(port=server.port, protocol=2))
    coordinator = AsyncIdempotencyCoordinator(repository, IdempotencyDomainService())

    @async_idempotent("orders", JsonResultAdapter(), ttl_seconds=600, fingerprint_params=("order",))
    async def place(idempotency_key: str, order: Any, coordinator: AsyncIdempotencyCoordinator) -> Any:
        return view(order)

    async def endpoint(request: Any) -> Any:
        key, order = request.headers["Idempotency-Key"], await request.json()
        return JSONResponse(await place(idempotency_key=key, order=order, coordinator=coordinator))

    yield Subject("idempotency-kit in Starlette", "ASGI", asgi.sender(asgi.app(endpoint)), view)
