"""The API of the sandbox: objects, errors, parameters and faults, with the real client over the socket."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
import stripe

from example_app.sandbox import Fault, Sandbox
from example_app.sandbox.fields import SESSION_FIELDS

Params = dict[str, Any]


def line(params: Params) -> dict[str, Any]:
    return params["line_items"][0]


def ask(sandbox: Sandbox, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(sandbox.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_the_known_fields_are_those_of_the_installed_client():
    declared = set(stripe.checkout.Session.__annotations__) - {"OBJECT_NAME"}
    assert declared - set(SESSION_FIELDS) == set()  # an older client declares less
    assert list(SESSION_FIELDS) == sorted(set(SESSION_FIELDS))


def test_a_session_has_every_field_that_the_client_declares(client, params):
    session = client.v1.checkout.sessions.create(params)
    missing = [name for name in SESSION_FIELDS if not hasattr(session, name)]
    assert missing == []
    assert isinstance(session, stripe.checkout.Session)


def test_a_session_says_what_is_to_be_paid_and_where(sandbox, client, clock, params):
    params.update(client_reference_id="ord_1", metadata={"order_id": "ord_1", "0": "zero"}, customer_email="a@b.c")
    session = client.v1.checkout.sessions.create(params)
    assert (session.amount_total, session.currency, session.mode) == (3600, "eur", "payment")
    assert (session.status, session.payment_status, session.payment_intent) == ("open", "unpaid", None)
    assert (session.client_reference_id, session.customer_email) == ("ord_1", "a@b.c")
    assert (session.metadata["order_id"], session.metadata["0"]) == ("ord_1", "zero")
    assert (session.created, session.expires_at) == (clock(), clock() + 24 * 3600)
    assert session.url == f"{sandbox.url}/pay/{session.id}"
    assert session.id.startswith("cs_test_")
    assert (session.livemode, session.ui_mode, session.line_items) == (False, "hosted_page", None)


def test_lines_come_on_request(client, params):
    params["line_items"] = [{**line(params), "quantity": n} for n in range(1, 13)]
    session = client.v1.checkout.sessions.create({**params, "expand": ["line_items"]})
    assert [item.quantity for item in session.line_items.data] == list(range(1, 13))
    page = client.v1.checkout.sessions.line_items.list(session.id)
    assert (len(page.data), page.has_more) == (10, True)
    assert [item.quantity for item in page.auto_paging_iter()] == list(range(1, 13))
    assert (page.data[1].amount_total, page.data[1].price.unit_amount, page.data[1].description) == (
        3600,
        1800,
        "Mug",
    )
    again = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["line_items"]})
    assert len(again.line_items.data) == 12


def test_an_expired_session_cannot_be_paid_or_expired_again(sandbox, client, params):
    session = client.v1.checkout.sessions.create(params)
    expired = client.v1.checkout.sessions.expire(session.id)
    assert (expired.status, expired.url) == ("expired", None)
    sandbox.pay(session.id)
    assert client.v1.checkout.sessions.retrieve(session.id).payment_status == "unpaid"
    with pytest.raises(stripe.InvalidRequestError, match="open"):
        client.v1.checkout.sessions.expire(session.id)


def test_a_session_expires_at_its_time(client, clock, params):
    session = client.v1.checkout.sessions.create({**params, "expires_at": int(clock()) + 1800})
    clock.advance(1799)
    assert client.v1.checkout.sessions.retrieve(session.id).status == "open"
    clock.advance(1)
    assert client.v1.checkout.sessions.retrieve(session.id).status == "expired"


def test_an_unknown_session_is_404(client):
    for call in (client.v1.checkout.sessions.retrieve, client.v1.checkout.sessions.expire):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            call("cs_test_nobody")
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


@pytest.mark.parametrize("key", ["sk_live_abc", "rk_live_abc", "pk_test_abc", "nonsense"])
def test_only_secret_test_keys_are_let_in(sandbox, key):
    status, body = ask(sandbox, "POST", "/v1/checkout/sessions", {}, Authorization=f"Bearer {key}")
    assert (status, body["error"]["code"]) == (401, "api_key_invalid")


def test_a_restricted_test_key_is_one(sandbox, connect, params):
    connect(sandbox.url, key="rk_test_abc").v1.checkout.sessions.create(params)
    assert len(sandbox.sessions) == 1


def test_a_request_without_a_key_is_401_in_stripes_format(sandbox):
    status, body = ask(sandbox, "POST", "/v1/checkout/sessions", {})
    assert status == 401
    assert body["error"].keys() == {"type", "code", "message", "param"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"mode": ""}, "mode"),
        ({"mode": "setup"}, "mode"),
        ({"line_items": []}, "line_items"),
        ({"line_items": "mug"}, "line_items"),
        ({"line_items": {"first": {}}}, "line_items"),
        ({"success_url": ""}, "success_url"),
        ({"success_url": "/orders/1"}, "success_url"),
        ({"success_url": "javascript://x"}, "success_url"),
        ({"success_url": "http://[oops/"}, "success_url"),
        ({"cancel_url": "ftp://127.0.0.1/"}, "cancel_url"),
        ({"ui_mode": "embedded_page"}, "ui_mode"),
        ({"payment_method_types": ["card"]}, "payment_method_types"),
        ({"client_reference_id": "x" * 201}, "client_reference_id"),
        ({"metadata": {"k" * 41: "v"}}, "metadata"),
        ({"metadata": {"k": "v" * 501}}, "metadata[k]"),
        ({"metadata": "flat"}, "metadata"),
        ({"expires_at": "soon"}, "expires_at"),
        ({"expires_at": 1}, "expires_at"),
        ({"expand": ["customer"]}, "expand"),
    ],
)
def test_a_bad_parameter_is_named(sandbox, client, params, change, param):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.checkout.sessions.create({**params, **change})
    assert (caught.value.http_status, caught.value.param) == (400, param)
    assert sandbox.sessions == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"quantity": 0}, "line_items[0][quantity]"),
        ({"quantity": 1.5}, "line_items[0][quantity]"),
        ({"quantity": True}, "line_items[0][quantity]"),
        ({"quantity": None}, "line_items[0][quantity]"),
        ({"price_data": None}, "line_items[0][price_data]"),
        ({"price": "price_1"}, "line_items[0][price]"),
        ({"unit_amount": 0}, "line_items[0][price_data][unit_amount]"),
        ({"unit_amount": -1}, "line_items[0][price_data][unit_amount]"),
        ({"unit_amount": 9.99}, "line_items[0][price_data][unit_amount]"),
        ({"unit_amount": 10**9}, "line_items[0][price_data][unit_amount]"),
        ({"currency": None}, "line_items[0][price_data][currency]"),
        ({"currency": "euro"}, "line_items[0][price_data][currency]"),
        ({"currency": "€€€"}, "line_items[0][price_data][currency]"),
        ({"product_data": None}, "line_items[0][price_data][product_data]"),
        ({"product_data": {"name": ""}}, "line_items[0][price_data][product_data][name]"),
        ({"product_data": {"nom": "x"}}, "line_items[0][price_data][product_data][nom]"),
    ],
)
def test_a_bad_line_is_named(sandbox, client, params, change, param):
    target = line(params) if change.keys() & {"quantity", "price_data", "price"} else {**line(params)["price_data"]}
    if target is not line(params):
        line(params)["price_data"] = target
    target.update(change)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.checkout.sessions.create(params)
    assert (caught.value.http_status, caught.value.param) == (400, param)
    assert sandbox.sessions == []


def test_all_lines_have_one_currency(client, params):
    dollars = {**line(params)["price_data"], "currency": "usd"}
    params["line_items"].append({"price_data": dollars, "quantity": 1})
    with pytest.raises(stripe.InvalidRequestError, match="same currency"):
        client.v1.checkout.sessions.create(params)


def test_what_the_sandbox_does_not_know_is_404_in_stripes_format(client):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.customers.create({"name": "Ada"})
    assert caught.value.http_status == 404


def test_faults_can_be_set_and_read_over_http(sandbox, client, params):
    status, body = ask(sandbox, "POST", "/_sandbox/faults", {"error": 500, "times": 2})
    assert (status, body["faults_waiting"]) == (201, 2)
    with pytest.raises(stripe.APIError):
        client.v1.checkout.sessions.create(params)
    status, body = ask(sandbox, "DELETE", "/_sandbox/faults")
    assert (status, body["faults_waiting"]) == (200, 0)
    session = client.v1.checkout.sessions.create(params)
    _, state = ask(sandbox, "GET", "/_sandbox/state")
    assert [known["id"] for known in state["sessions"]] == [session.id]
    assert state["requests"]["executed"] == 2


@pytest.mark.parametrize(
    "body",
    [[], {"error": 418}, {"error": "500"}, {"delay": -1}, {"delay": "1"}, {"delay": True}, {"times": 0},
     {"times": True}, {"lost_answer": 1}, {"at": "night"}, {"surprise": 1}],
)  # fmt: skip
def test_a_fault_that_does_not_exist_is_refused(sandbox, body):
    status, answer = ask(sandbox, "POST", "/_sandbox/faults", body)
    assert status == 400
    assert answer["message"]
    assert sandbox.faults_waiting == 0


def test_a_form_of_another_site_cannot_set_a_fault(sandbox):
    request = urllib.request.Request(
        f"{sandbox.url}/_sandbox/faults", b'{"error": 500}', {"Content-Type": "text/plain"}
    )
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value:
        assert caught.value.code == 415


@pytest.mark.parametrize("path", ["/_sandbox/state", "/v1/checkout/sessions/cs_test_1", "/"])
def test_the_sandbox_answers_to_loopback_names_only(sandbox, path):
    request = urllib.request.Request(sandbox.url + path, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=5)
    with caught.value:
        assert caught.value.code == 400


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost", "example.com", ""])
def test_the_sandbox_refuses_to_be_reached_from_outside(host):
    with pytest.raises(ValueError, match="loopback"):
        Sandbox(host=host)


def test_a_fault_describes_itself_before_it_is_used():
    with pytest.raises(ValueError, match="402, 429 or 500"):
        Fault(error=503)
