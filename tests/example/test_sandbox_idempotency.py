"""Stripe's idempotency rules, as the real client sees them over the socket."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import stripe

from example_app.sandbox import Fault

Params = dict[str, Any]


def create(client: stripe.StripeClient, params: Params, key: str = "key-1") -> stripe.checkout.Session:
    return client.v1.checkout.sessions.create(params, {"idempotency_key": key})  # type: ignore[arg-type]


def headers_of(answer: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.last_response.headers.items()}


def test_the_same_request_under_the_same_key_is_replayed(sandbox, client, params):
    first, second = create(client, params), create(client, params)
    assert str(first) == str(second)
    assert len(sandbox.sessions) == 1
    assert "idempotent-replayed" not in headers_of(first)
    assert headers_of(second)["idempotent-replayed"] == "true"
    assert headers_of(second)["original-request"] == headers_of(first)["request-id"]
    assert headers_of(second)["request-id"] != headers_of(first)["request-id"]
    assert sandbox.requests == {
        "executed": 1, "replayed": 1, "mismatched": 0, "in_use": 0, "refused": 0, "lost": 0,
    }  # fmt: skip


def test_a_replay_shows_the_session_as_it_was_when_it_was_created(sandbox, client, params):
    session = create(client, params)
    sandbox.pay(session.id)
    assert create(client, params).status == "open"
    assert client.v1.checkout.sessions.retrieve(session.id).status == "complete"


def test_other_parameters_under_the_same_key_are_an_idempotency_error(sandbox, client, params):
    create(client, params)
    with pytest.raises(stripe.IdempotencyError) as caught:
        create(client, {**params, "client_reference_id": "other"})
    assert caught.value.http_status == 400
    assert "other parameters" in str(caught.value)
    assert len(sandbox.sessions) == 1
    assert sandbox.requests["mismatched"] == 1


def test_the_same_key_on_another_endpoint_is_an_idempotency_error(sandbox, client, params):
    session = create(client, params)
    with pytest.raises(stripe.IdempotencyError, match="another endpoint"):
        client.v1.checkout.sessions.expire(session.id, {}, {"idempotency_key": "key-1"})
    assert sandbox.sessions[0]["status"] == "open"


def test_another_key_is_another_session(sandbox, client, params):
    assert create(client, params, "key-1").id != create(client, params, "key-2").id
    assert len(sandbox.sessions) == 2


def test_without_a_key_of_ones_own_the_client_sends_a_new_one_each_time(sandbox, client, params):
    client.v1.checkout.sessions.create(params)
    client.v1.checkout.sessions.create(params)
    assert len(sandbox.sessions) == 2


def test_a_duplicate_of_a_running_request_is_told_that_the_key_is_in_use(sandbox, client, connect, params, wait_until):
    sandbox.inject(Fault(delay=0.5))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(create, connect(sandbox.url), params)
        wait_until(lambda: sandbox.faults_waiting == 0)
        with pytest.raises(stripe.APIError) as caught:
            create(client, params)
        assert not running.done()
        session = running.result(10)
    assert caught.value.http_status == 409
    assert caught.value.error.code == "idempotency_key_in_use"
    assert create(client, params).id == session.id
    assert (sandbox.requests["in_use"], len(sandbox.sessions)) == (1, 1)


def test_twenty_requests_at_once_under_one_key_create_one_session(sandbox, connect, params):
    sandbox.inject(Fault(delay=0.1))

    def attempt(_: int) -> str | None:
        try:
            return create(connect(sandbox.url), params).id
        except stripe.APIError as error:
            if error.http_status != 409:
                raise
            return None

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(attempt, range(20)))
    assert ids - {None} == {sandbox.sessions[0]["id"]}
    assert len(sandbox.sessions) == 1
    assert sandbox.requests["executed"] == 1


def test_a_lost_answer_and_the_retry_of_the_client_end_in_one_session(sandbox, connect, params):
    sandbox.inject(Fault(lost_answer=True))
    session = create(connect(sandbox.url, retries=2), params)
    assert [session.id] == [known["id"] for known in sandbox.sessions]
    assert headers_of(session)["idempotent-replayed"] == "true"
    counts = sandbox.requests
    assert (counts["executed"], counts["lost"], counts["replayed"]) == (1, 1, 1)


def test_a_lost_answer_without_a_retry_is_a_connection_error_and_a_session_all_the_same(sandbox, client, params):
    sandbox.inject(Fault(lost_answer=True))
    with pytest.raises(stripe.APIConnectionError):
        create(client, params)
    assert len(sandbox.sessions) == 1


@pytest.mark.parametrize(("status", "kind"), [(500, stripe.APIError), (402, stripe.CardError)])
def test_an_error_of_the_execution_is_kept_and_replayed(sandbox, client, params, status, kind):
    sandbox.inject(Fault(error=status))
    with pytest.raises(kind) as first:
        create(client, params)
    with pytest.raises(kind) as second:
        create(client, params)
    assert first.value.http_status == second.value.http_status == status
    assert "idempotent-replayed" not in {name.lower() for name in first.value.headers}
    assert second.value.headers["Idempotent-Replayed"] == "true"
    assert sandbox.sessions == []
    assert create(client, params, "another key").status == "open"


def test_too_many_requests_is_not_kept(sandbox, client, params):
    sandbox.inject(Fault(error=429))
    with pytest.raises(stripe.RateLimitError):
        create(client, params)
    assert create(client, params).status == "open"
    assert sandbox.requests["refused"] == 1


def test_invalid_parameters_are_not_kept_so_that_the_key_can_be_used_with_better_ones(sandbox, client, params):
    with pytest.raises(stripe.InvalidRequestError):
        create(client, {**params, "mode": "subscription"})
    assert create(client, params).status == "open"
    assert len(sandbox.sessions) == 1


def test_a_wrong_api_key_is_not_kept(sandbox, client, params):
    headers = {"Authorization": "Bearer sk_live_no", "Idempotency-Key": "key-1"}
    answer = requests.post(f"{sandbox.url}/v1/checkout/sessions", headers=headers, timeout=10)
    assert answer.status_code == 401
    assert create(client, params).status == "open"


def test_a_key_lives_for_24_hours(sandbox, client, clock, params):
    first = create(client, params)
    clock.advance(24 * 3600 - 1)
    assert create(client, params).id == first.id
    clock.advance(1)
    assert create(client, params).id != first.id


def test_a_replay_does_not_care_that_its_parameters_would_be_refused_by_now(sandbox, client, clock, params):
    params["expires_at"] = int(clock()) + 3600
    first = create(client, params)
    clock.advance(7200)
    assert create(client, params).id == first.id


@pytest.mark.parametrize("length", [255, 256])
def test_a_key_has_at_most_255_characters(sandbox, client, params, length):
    if length == 255:
        assert create(client, params, "k" * length).status == "open"
        return
    with pytest.raises(stripe.IdempotencyError, match="255"):
        create(client, params, "k" * length)
    assert sandbox.sessions == []


def test_a_get_does_not_use_the_key(sandbox, client, params):
    session = create(client, params)
    for _ in range(2):
        answer = client.v1.checkout.sessions.retrieve(session.id, {}, {"idempotency_key": "key-1"})
        assert "idempotent-replayed" not in headers_of(answer)
