"""TLS connections that share what is dear about them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final

from redis.connection import SSLConnection

from ..core.forks import PerProcess

# A context reads all authorities of the system: 36 ms of CPU, for each connection when a process starts or its Redis
# comes back. No longer than this, for certificates are renewed on disk.
SHARED_SECONDS: Final = 60.0


@dataclass
class _Shared:
    """The context of one process.

    :param until: when another one is made, in monotonic seconds.
    """

    context: SSLContext | None = None
    until: float = 0.0


def sharing_context() -> type[SSLConnection]:
    """A class of connections with the same TLS settings."""
    shared = PerProcess(_Shared)

    class Sharing(SSLConnection):
        """redis-py's, but for the context."""

        def _wrap_socket_with_ssl(self, sock: Any) -> Any:
            ours, now = shared(), time.monotonic()
            checked_by_others = self.ssl_validate_ocsp or self.ssl_validate_ocsp_stapled
            if ours.context is not None and now < ours.until and not checked_by_others:
                return ours.context.wrap_socket(sock, server_hostname=self.host)
            wrapped = super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
            ours.context, ours.until = wrapped.context, now + SHARED_SECONDS
            return wrapped

    return Sharing
