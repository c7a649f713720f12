"""``POST /webhook``: signed events, each dealt with once, and delivered again until it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import stripe
from flask import Flask, abort

from flask_idempotent import (
    CheckoutError,
    ConfigurationError,
    Idempotency,
    create_blueprint,
    current_idempotency,
    idempotent,
    signals,
)

from ..signing import SECRET, delivery, event, signature
from .conftest import Gate, Runs, Server, assert_problem, eventually, redis_config

CONFIG = {"STRIPE_API_KEY": "sk_test_1", "STRIPE_WEBHOOK_SECRET": SECRET}


@pytest.fixture
def webhook(make_app: Callable[..., Flask], serve: Callable[..., Server]) -> Callable[..., Server]:
    """Serves a webhook over the store; called again, it is another worker."""

    def start(fulfil: Callable[[Any], Any], settings: dict[str, Any] | None = None, **options: Any) -> Server:
        app = make_app(**settings or {})
        app.config.update(CONFIG)
        app.register_blueprint(create_blueprint(fulfil=fulfil, **options))
        return serve(app)

    return start


@pytest.fixture
def touched(webhook: Any) -> Any:
    """What the store was asked for."""
    keys: list[str] = []

    def note(app: Flask, event: Any) -> None:
        keys.append(event.key)

    with signals.claimed.connected_to(note), signals.replayed.connected_to(note), signals.busy.connected_to(note):
        yield keys


def deliver(server: Server, sent: dict[str, Any] | None = None, **how: Any) -> requests.Response:
    return server.post("/webhook", **delivery(sent or event(), **how))


# --- Once ---------------------------------------------------------------------------------------------------------


def test_an_event_is_handed_over_once_and_acknowledged_each_time(webhook: Any, runs: Runs) -> None:
    seen = []

    def fulfil(event: stripe.Event) -> Any:
        seen.append((event.id, event.type, event.data.object.id, event.data.object.payment_status))
        return object()  # what it returns is nobody's business

    server = webhook(fulfil)
    sent = event(payment_status="paid")
    answers = [deliver(server, sent) for _ in range(3)]
    assert [(answer.status_code, answer.json()) for answer in answers] == 3 * [(200, {"received": True})]
    assert seen == [("evt_1", "checkout.session.completed", "cs_test_1", "paid")]


def test_the_same_event_in_other_words_is_the_same(webhook: Any, runs: Runs) -> None:
    server = webhook(lambda event: runs())
    for pending in (2, 1):
        assert deliver(server, {**event(), "pending_webhooks": pending}).status_code == 200
    assert runs.count == 1


def test_events_of_any_type_are_handed_over_and_those_that_mean_nothing_are_acknowledged(webhook: Any) -> None:
    seen = []
    server = webhook(lambda event: seen.append(event.type))
    kinds = ["checkout.session.expired", "charge.refunded", "customer.created", "nobody.knows.this"]
    for number, kind in enumerate(kinds):
        assert deliver(server, event(kind, f"evt_{number}")).status_code == 200
    assert seen == kinds


def test_every_worker_knows_what_another_one_did(webhook: Any, store: Any, runs: Runs) -> None:
    servers = [webhook(lambda event: runs()) for _ in range(store.workers)]
    for server in servers:
        assert deliver(server).status_code == 200
    assert runs.count == 1


def test_of_eight_deliveries_at_once_one_runs_and_the_others_are_told_to_come_back(
    webhook: Any, runs: Runs, gate: Gate
) -> None:
    def fulfil(event: Any) -> None:
        gate()
        runs()

    server = webhook(fulfil)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(deliver, server)
        gate.await_view()
        others = list(pool.map(lambda _: deliver(server), range(7)))
        gate.open()
        assert first.result(10).status_code == 200
    for other in others:
        assert_problem(other, "request-in-progress")
        assert int(other.headers["Retry-After"]) >= 1
    assert [deliver(server).status_code for _ in range(7)] == 7 * [200]
    assert runs.count == 1


def test_two_events_are_two_even_when_they_tell_of_one_session(webhook: Any) -> None:
    seen = []
    server = webhook(lambda event: seen.append(event.id))
    for number, kind in enumerate(["completed", "async_payment_succeeded"]):
        deliver(server, event(f"checkout.session.{kind}", f"evt_{number}"))
    assert seen == ["evt_0", "evt_1"]


def test_two_endpoints_of_one_app_each_get_the_event(make_app: Any, serve: Any) -> None:
    seen = []
    app = make_app()
    app.config.update(CONFIG)
    for name in ("a", "b"):
        blueprint = create_blueprint(
            fulfil=lambda event, name=name: seen.append(name), name=name, url_prefix=f"/{name}"
        )
        app.register_blueprint(blueprint)
    server = serve(app)
    for path in ("/a/webhook", "/b/webhook", "/a/webhook"):
        assert server.post(path, **delivery(event())).status_code == 200
    assert seen == ["a", "b"]


# --- Again --------------------------------------------------------------------------------------------------------


def test_an_event_whose_handling_broke_is_delivered_and_handled_again(webhook: Any) -> None:
    seen: list[tuple[int, str]] = []

    def fulfil(event: Any) -> None:
        seen.append((current_idempotency.attempt, current_idempotency.derive("mail")))
        if len(seen) < 3:
            raise ZeroDivisionError

    server = webhook(fulfil)
    assert [deliver(server).status_code for _ in range(5)] == [500, 500, 200, 200, 200]
    assert [attempt for attempt, _ in seen] == [1, 2, 3]
    assert len({derived for _, derived in seen}) == 1, "what it hands on has the same key each time"


@pytest.mark.parametrize("status", [400, 404, 409, 503])
def test_an_http_error_of_the_handling_is_the_answer_and_the_event_comes_again(webhook: Any, status: int) -> None:
    answers = [status]

    def fulfil(event: Any) -> None:
        if answers:
            abort(answers.pop())

    server = webhook(fulfil)
    assert [deliver(server).status_code for _ in range(2)] == [status, 200]


def test_after_the_retention_an_event_is_handled_anew(webhook: Any, runs: Runs) -> None:
    """Which is why fulfilment must itself be conditional."""
    server = webhook(lambda event: runs(), webhook_options={"ttl": 0.2})
    deliver(server)
    assert eventually(lambda: deliver(server).status_code == 200 and runs.count > 1)


@pytest.mark.redis
def test_an_event_is_kept_for_as_long_as_stripe_delivers_it(
    bare_app: Any, serve: Any, redis_server: Any, runs: Runs
) -> None:
    app = bare_app(**CONFIG, **redis_config(redis_server), IDEMPOTENCY_TTL=1)
    Idempotency(app)
    app.register_blueprint(create_blueprint(fulfil=lambda event: runs()))
    deliver(serve(app))
    with redis_server.client() as client:
        (key,) = client.keys("idempotency:*")
        assert 3 * 86400 - 60 < client.ttl(key) <= 3 * 86400


@pytest.mark.redis
def test_without_the_store_a_route_that_must_not_guess_makes_stripe_come_back(
    bare_app: Any, serve: Any, new_redis: Any, runs: Runs
) -> None:
    app = bare_app(**CONFIG, **{**redis_config(new_redis()), "IDEMPOTENCY_STORE_TIMEOUT": 0.25})
    Idempotency(app)
    app.register_blueprint(create_blueprint(fulfil=lambda event: runs(), webhook_options={"on_outage": "reject"}))
    answer = deliver(serve(app))
    assert_problem(answer, "store-unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    assert runs.count == 0


# --- The signature ------------------------------------------------------------------------------------------------

BODY = json.dumps(event()).encode()
FORGED: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "no time": signature(BODY).partition(",")[2],
    "no signature": signature(BODY).partition(",")[0],
    "another secret's": signature(BODY, secret="whsec_other"),
    "another body's": signature(BODY.replace(b"evt_1", b"evt_2")),
    "another scheme's": signature(BODY, scheme="v0"),
    "of another time": signature(BODY).replace("t=", "t=9"),
    "no number": "t=now,v1=abc",
    "not ASCII": f"t={int(time.time())},v1=\xe9",
    "garbage": ",=,v1,t=1=2,",
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_a_bad_signature_is_refused_before_anything_is_touched(
    webhook: Any, runs: Runs, touched: list[str], forged: str | None
) -> None:
    server = webhook(lambda event: runs())
    headers = {"Content-Type": "application/json"} | ({} if forged is None else {"Stripe-Signature": forged})
    answer = server.post("/webhook", data=BODY, headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (400, "application/problem+json")
    assert (answer.json()["code"], answer.json()["retryable"]) == ("webhook-refused", False)
    assert "evt_1" not in answer.text
    assert "whsec" not in answer.text
    assert (runs.count, touched) == (0, [])


def test_an_old_signature_is_refused_and_a_recent_one_taken(webhook: Any, runs: Runs) -> None:
    server = webhook(lambda event: runs())
    assert deliver(server, at=time.time() - 310).status_code == 400
    assert deliver(server, at=time.time() - 280).status_code == 200
    assert runs.count == 1


def test_while_a_secret_is_rolled_one_of_two_signatures_is_enough(webhook: Any, runs: Runs) -> None:
    server = webhook(lambda event: runs())
    both = f"{signature(BODY, secret='whsec_old')},{signature(BODY).partition(',')[2]}"
    assert server.post("/webhook", data=BODY, headers={"Stripe-Signature": both}).status_code == 200
    assert runs.count == 1


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff\xfe", b"{"])
def test_what_is_signed_but_no_event_is_refused(webhook: Any, runs: Runs, body: bytes) -> None:
    server = webhook(lambda event: runs())
    answer = server.post("/webhook", data=body, headers={"Stripe-Signature": signature(body)})
    assert (answer.status_code, runs.count) == (400, 0)


def test_the_bytes_count_as_they_came(webhook: Any, runs: Runs) -> None:
    """A body that was parsed and written anew would not fit its signature."""
    body = b'{ "type" : "x","id":"evt_9",\n\t"object":"event", "n": 1.50, "s": "\\u00e9\xc3\xa9" }'
    server = webhook(lambda event: runs())
    assert server.post("/webhook", data=body, headers={"Stripe-Signature": signature(body)}).status_code == 200
    altered = body.replace(b"1.50", b"1.5")
    assert server.post("/webhook", data=altered, headers={"Stripe-Signature": signature(body)}).status_code == 400
    assert runs.count == 1


@pytest.mark.parametrize("missing", CONFIG)
def test_what_is_missing_is_the_servers_fault_and_is_logged(
    webhook: Any, runs: Runs, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    server = webhook(lambda event: runs())
    server.app.config[missing] = None
    answer = deliver(server)
    assert (answer.status_code, answer.json()["code"]) == (500, "payment-misconfigured")
    assert missing not in answer.text
    assert missing in caplog.text
    assert runs.count == 0


def test_the_secret_may_come_from_the_environment(webhook: Any, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    server = webhook(lambda event: runs())
    del server.app.config["STRIPE_WEBHOOK_SECRET"]
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET", "whsec_environment")
    assert deliver(server, secret="whsec_environment").status_code == 200
    assert deliver(server, event(event_id="evt_2")).status_code == 400


# --- The blueprint ------------------------------------------------------------------------------------------------


def test_without_fulfil_there_is_no_webhook(make_app: Any, serve: Any) -> None:
    app = make_app()
    app.register_blueprint(create_blueprint())
    assert serve(app).post("/webhook").status_code == 404


def test_a_wrong_option_is_named_at_start_up() -> None:
    with pytest.raises(ConfigurationError, match="tll"):
        create_blueprint(fulfil=print, webhook_options={"tll": 1})


def test_the_refusal_can_be_put_into_the_hosts_own_words(make_app: Any, serve: Any) -> None:
    app = make_app()
    app.config.update(CONFIG)
    app.register_blueprint(create_blueprint(fulfil=print))
    app.register_error_handler(CheckoutError, lambda error: (f"ours: {error.problem_code}", error.code))
    answer = deliver(serve(app), secret="whsec_other")
    assert (answer.status_code, answer.text) == (400, "ours: webhook-refused")


def test_events_and_guarded_views_share_a_store_and_no_keys(make_app: Any, serve: Any, runs: Runs) -> None:
    app = make_app()
    app.config.update(CONFIG)
    app.register_blueprint(create_blueprint(fulfil=lambda event: runs()))
    app.post("/")(idempotent(lambda: str(runs())))
    server = serve(app)
    assert deliver(server).status_code == 200
    assert server.post(key='"idempotency.webhook evt_1"').text == "2"
    with app.app_context():
        assert app.extensions["idempotency"].run("idempotency.webhook evt_1", runs) == 3


def test_threads_that_deliver_different_events_do_not_wait_for_each_other(webhook: Any) -> None:
    meet = threading.Barrier(4, timeout=10)
    server = webhook(lambda event: meet.wait() and None)
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda number: deliver(server, event(event_id=f"evt_{number}")), range(4))
        assert [answer.status_code for answer in answers] == 4 * [200]
