"""The sandbox on its socket."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from ..serving import LOOPBACK, Server
from .account import Account, Kind
from .app import create_app
from .courier import Attempt
from .events import event_object
from .faults import Fault
from .objects import session_object
from .webhooks import EVERYTHING


class Sandbox:
    """An offline Stripe in a thread of this process.

    ::

        with Sandbox() as sandbox:
            client = StripeClient("sk_test_sandbox", base_addresses={"api": sandbox.url})
            sandbox.inject(Fault(lost_answer=True))
            client.v1.checkout.sessions.create(params, {"idempotency_key": key, "max_network_retries": 2})
            assert len(sandbox.sessions) == 1
    """

    def __init__(
        self,
        *,
        host: str = LOOPBACK,
        port: int = 0,
        clock: Callable[[], float] = time.time,
        token: Callable[[int], str] = secrets.token_hex,
        redelivery: float = 0.5,
    ) -> None:
        """Bind the socket; nothing is answered before :meth:`start`.

        :param host: a loopback address, as digits.
        :param port: the TCP port; 0 takes any free one.
        :param clock: returns the time in seconds since the epoch.
        :param token: returns a random text of two characters for each byte asked for.
        :param redelivery: seconds before an event that an endpoint did not take is delivered again; the wait doubles
            each time, up to 64 times this.
        :raises ValueError: when the host is no loopback address.
        :raises OSError: when the port cannot be had.
        """
        self._server = Server(host, port)
        self._account = Account(clock, token, self._server.url, redelivery)

    @property
    def url(self) -> str:
        """The base address for the client, such as ``http://127.0.0.1:40123``."""
        return self._server.url

    def start(self) -> Sandbox:
        """Answer requests from now on; returns the sandbox, raises RuntimeError when called again."""
        self._server.start(create_app(self._account))
        self._account.courier.start()
        return self

    def stop(self) -> None:
        """End delays and deliveries, finish what is being answered and free the port. Safe to repeat."""
        self._account.close()
        self._server.stop()

    def __enter__(self) -> Sandbox:
        """Start the sandbox."""
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the sandbox."""
        self.stop()

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """Every session created so far, oldest first, as the API shows it."""
        return [session_object(session, self.url) for session in self._account.sessions.all()]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event so far, oldest first, as the API shows it."""
        return [event_object(event) for event in self._account.events.all()]

    @property
    def attempts(self) -> list[Attempt]:
        """Every try to deliver an event, in the order in which they ended."""
        return self._account.attempts()

    @property
    def requests(self) -> dict[Kind, int]:
        """How many POSTs to the API ended in which way; see :meth:`.account.Account.counts`."""
        return self._account.counts()

    def add_webhook(self, url: str, kinds: Iterable[str] = (EVERYTHING,)) -> str:
        """Deliver events from now on to an address on this computer, until it takes each with a 2xx.

        :param url: such as ``http://127.0.0.1:5000/webhook``.
        :param kinds: the types of events; all by default.
        :return: The secret that the deliveries are signed with.
        :raises ApiError: when the address is not on this computer.
        """
        return self._account.endpoints.add(url, kinds).secret

    def redeliver(self, event_id: str) -> None:
        """Deliver an event once more to every endpoint that wants it; raises ApiError for an unknown id."""
        self._account.deliver(self._account.events.get(event_id))

    def inject(self, fault: Fault, times: int = 1) -> None:
        """Let ``fault`` happen to the next ``times`` (1 to 1000) calls that it is meant for, else raise ValueError."""
        self._account.faults.put(fault, times)

    @property
    def faults_waiting(self) -> int:
        """How many calls are still to be disturbed."""
        return len(self._account.faults)

    def clear_faults(self) -> None:
        """Forget the faults that still wait."""
        self._account.faults.clear()

    def pay(self, session_id: str) -> None:
        """Pay a session as the buyer would on the hosted page; raises ApiError for an unknown id."""
        self._account.sessions.pay(session_id)

    def transfer(self, session_id: str) -> None:
        """Complete a session by a bank transfer that is still on its way; raises ApiError for an unknown id."""
        self._account.sessions.transfer(session_id)

    def settle(self, session_id: str, *, arrived: bool) -> None:
        """Let the money of a transfer arrive, or not; raises ApiError for an unknown id."""
        self._account.sessions.settle(session_id, arrived=arrived)

    def expire(self, session_id: str) -> None:
        """End an open session before its time; raises ApiError when there is none."""
        self._account.sessions.expire(session_id)
