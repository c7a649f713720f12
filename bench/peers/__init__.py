"""Other packages for idempotency keys, as they install from the package index: ``bench/peers.txt``.

Each module sets one of them up as its own documentation says. PEERS maps the distribution to the module.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from tests.servers.standalone import RedisProcess

from ..subject import Subject

PEERS = {
    "aws-lambda-powertools": "powertools",
    "idempotency-kit": "kit",
    "asgi-idempotency-header": "asgi_header",
    "idempot": "idempot_asgi",
    "fastapi-idempotency": "fastapi_middleware",
}


def installed() -> dict[str, str]:
    """The peers that are there, with their versions."""
    found = {}
    for name in PEERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def subjects(server: RedisProcess) -> Iterator[Subject]:
    """Each installed peer over the Redis."""
    for name in installed():
        yield from import_module(f".{PEERS[name]}", __name__).subjects(server)
