"""Where events are sent, and how they are signed."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ..serving import LOOPBACK_NAMES
from .errors import invalid, missing, no_such

EVERYTHING = "*"
MAX_ENDPOINTS = 16  # as many as Stripe has


@dataclass(frozen=True)
class Endpoint:
    """An address that is told of events. ``created`` is in seconds since the epoch.

    :ivar secret: what its deliveries are signed with.
    :ivar kinds: the types of events that it wants to hear of; ``*`` for all.
    """

    id: str
    url: str
    secret: str
    kinds: tuple[str, ...]
    created: int

    def wants(self, kind: str) -> bool:
        """Whether events of this type are sent here."""
        return EVERYTHING in self.kinds or kind in self.kinds


class Endpoints:
    """The endpoints of the account, oldest first. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float], token: Callable[[int], str]) -> None:
        """Start empty.

        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        """
        self._clock = clock
        self._token = token
        self._lock = threading.Lock()
        self._endpoints: dict[str, Endpoint] = {}

    def add(self, url: str, kinds: Iterable[str]) -> Endpoint:
        """Tell an address of events from now on.

        :param url: on this computer: nothing leaves it.
        :param kinds: types of events; ``*`` for all.
        :raises ApiError: 400 when the address is another one, the list is empty, or there are too many endpoints.
        """
        address(url)
        kinds = tuple(kinds)
        if not kinds:
            raise missing("enabled_events")
        secret = f"whsec_{self._token(24)}"
        endpoint = Endpoint(f"we_{self._token(12)}", url, secret, kinds, int(self._clock()))
        with self._lock:
            if len(self._endpoints) >= MAX_ENDPOINTS:
                raise invalid("url", f"There are {MAX_ENDPOINTS} webhook endpoints already; delete one.")
            self._endpoints[endpoint.id] = endpoint
        return endpoint

    def remove(self, endpoint_id: str) -> Endpoint:
        """Tell an endpoint of nothing more, and return it; a 404 ApiError when there is none."""
        with self._lock:
            endpoint = self._endpoints.pop(endpoint_id, None)
        if endpoint is None:
            raise no_such("webhook_endpoint", endpoint_id)
        return endpoint

    def get(self, endpoint_id: str) -> Endpoint:
        """Return an endpoint, or raise a 404 ApiError."""
        with self._lock:
            endpoint = self._endpoints.get(endpoint_id)
        if endpoint is None:
            raise no_such("webhook_endpoint", endpoint_id)
        return endpoint

    def all(self) -> list[Endpoint]:
        """Return every endpoint, oldest first."""
        with self._lock:
            return list(self._endpoints.values())

    def has(self, endpoint: Endpoint) -> bool:
        """Whether it is still told of events."""
        with self._lock:
            return endpoint.id in self._endpoints


def address(url: str) -> SplitResult:
    """Return the parts of an endpoint's URL.

    :raises ApiError: 400 when it is not ``http`` on a loopback name.
    """
    refusal = invalid("url", "url takes http://127.0.0.1 or localhost with any port: nothing leaves this computer.")
    try:
        parts = urlsplit(url)
        host = parts.netloc.removesuffix(f":{parts.port}")
    except ValueError:
        raise refusal from None
    if parts.scheme != "http" or host not in LOOPBACK_NAMES or not all("!" <= mark <= "~" for mark in url):
        raise refusal
    return parts


def signature(body: bytes, secret: str, now: float) -> str:
    """Return the ``Stripe-Signature`` of a delivery (https://docs.stripe.com/webhooks#verify-manually).

    :param body: what is sent, byte for byte.
    :param secret: the endpoint's.
    :param now: the time in seconds since the epoch.
    """
    moment = int(now)
    mac = hmac.new(secret.encode(), b"%d.%s" % (moment, body), hashlib.sha256)
    return f"t={moment},v1={mac.hexdigest()}"
