"""Events, and the webhook endpoints that hear of them, over the API."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, request

from .account import current_account
from .errors import missing
from .events import API_VERSION, event_object
from .execution import Outcome, answer, execute_once, list_object, page, show
from .fields import ENDPOINT_FIELDS, complete
from .forms import Tree, as_list, as_map, as_text
from .webhooks import Endpoint

event_api = Blueprint("events", __name__)

ENDPOINT_PARAMS = frozenset({"enabled_events", "url"})


@event_api.get("/events")
def list_events() -> Response:
    """Show a page of the events, the newest first; ``type`` asks for those of one type."""
    kind = request.args.get("type")
    found = [event for event in reversed(current_account().events.all()) if kind in (None, event.type)]
    shown, more = page(found, lambda event: event.id)
    return show(list_object([event_object(event) for event in shown], has_more=more))


@event_api.get("/events/<event_id>")
def retrieve_event(event_id: str) -> Response:
    """Show an event."""
    return show(event_object(current_account().events.get(event_id)))


@event_api.post("/webhook_endpoints")
def create_endpoint() -> Response:
    """Tell an address on this computer of events; the answer has the secret that they are signed with."""

    def create(form: Tree) -> Outcome:
        as_map(form, "", ENDPOINT_PARAMS)
        for required in ("enabled_events", "url"):
            if not form.get(required):
                raise missing(required)
        kinds = [as_text(kind, "enabled_events", 100) for kind in as_list(form["enabled_events"], "enabled_events")]
        endpoint = current_account().endpoints.add(as_text(form["url"], "url", 2048), kinds)
        return Outcome(answer(200, endpoint_object(endpoint) | {"secret": endpoint.secret}))

    return execute_once(create)


@event_api.get("/webhook_endpoints")
def list_endpoints() -> Response:
    """Show a page of the endpoints, the newest first, without their secrets."""
    shown, more = page(current_account().endpoints.all()[::-1], lambda endpoint: endpoint.id)
    return show(list_object([endpoint_object(endpoint) for endpoint in shown], has_more=more))


@event_api.get("/webhook_endpoints/<endpoint_id>")
def retrieve_endpoint(endpoint_id: str) -> Response:
    """Show an endpoint, without its secret."""
    return show(endpoint_object(current_account().endpoints.get(endpoint_id)))


@event_api.delete("/webhook_endpoints/<endpoint_id>")
def delete_endpoint(endpoint_id: str) -> Response:
    """Tell an address of nothing more."""
    endpoint = current_account().endpoints.remove(endpoint_id)
    return show({"id": endpoint.id, "object": "webhook_endpoint", "deleted": True})


def endpoint_object(endpoint: Endpoint) -> dict[str, Any]:
    """Return the ``webhook_endpoint`` object, without its secret: only its creation shows that."""
    filled = {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "api_version": API_VERSION,
        "created": endpoint.created,
        "enabled_events": list(endpoint.kinds),
        "livemode": False,
        "metadata": {},
        "status": "enabled",
        "url": endpoint.url,
    }
    return complete(ENDPOINT_FIELDS, filled)
