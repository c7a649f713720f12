"""Who watches hears of every outcome, once, by signal and by log record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask, abort, request

from flask_idempotent import idempotent, signals
from flask_idempotent.core.guard import Occurrence, Outcome

from .conftest import Gate, Server, assert_problem, eventually

NAMES = {
    "claimed": signals.claimed,
    "replayed": signals.replayed,
    "busy": signals.busy,
    "mismatched": signals.mismatched,
    "outcome-unknown": signals.outcome_unknown,
    "completed": signals.completed,
    "failed": signals.failed,
    "released": signals.released,
    "lost-lease": signals.lost_lease,
    "unprotected": signals.unprotected,
    "unrecorded": signals.unrecorded,
    "outage": signals.outage,
    "recovered": signals.recovered,
    "duplicated": signals.duplicated,
}


@pytest.fixture
def watched(make_app: Callable[..., Flask]) -> Iterator[tuple[Flask, list[Occurrence]]]:
    """An app, and what its receivers have been told."""
    app, seen = make_app(), []

    def receive(_app: Flask, event: Occurrence) -> None:
        seen.append(event)

    with ExitStack() as stack:
        for signal in NAMES.values():
            stack.enter_context(signal.connected_to(receive, app))
        yield app, seen


def outcomes(seen: list[Occurrence]) -> list[str]:
    return [event.outcome.value for event in seen]


def test_each_outcome_has_a_signal() -> None:
    assert {outcome.value for outcome in Outcome} == set(NAMES)


@pytest.mark.parametrize(
    ("status", "ending"), [(201, "completed"), (404, "completed"), (500, "failed"), (401, "released")]
)
def test_the_first_request_is_claimed_and_then_ends(
    watched: tuple[Flask, list[Occurrence]], serve: Callable[..., Server], status: int, ending: str
) -> None:
    app, seen = watched
    app.post("/")(idempotent(lambda: ("done", status)))
    assert serve(app).post(key="k").status_code == status
    assert outcomes(seen) == ["claimed", ending]


def test_repetitions_are_replayed_mismatched_or_busy(
    watched: tuple[Flask, list[Occurrence]], serve: Callable[..., Server], gate: Gate
) -> None:
    app, seen = watched
    app.post("/")(idempotent(lambda: ("done", 201)))
    app.post("/slow", endpoint="slow")(idempotent(lambda: (gate(), ("done", 201))[1]))
    server = serve(app)
    server.post(key="k", json=1)
    server.post(key="k", json=1)
    assert_problem(server.post(key="k", json=2), "key-reused")
    assert outcomes(seen) == ["claimed", "completed", "replayed", "mismatched"]
    with server.connect() as first:
        first.sendall(b"POST /slow HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n")
        gate.await_view()
        assert_problem(server.post("/slow", key="k"), "request-in-progress")
        gate.open()
        eventually(lambda: outcomes(seen)[4:] == ["claimed", "busy", "completed"])


def test_the_key_in_events_and_log_records_is_hashed(
    watched: tuple[Flask, list[Occurrence]], serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = watched
    app.post("/")(idempotent(lambda: ("done", 201)))
    with caplog.at_level(logging.DEBUG, logger="flask_idempotent"):
        serve(app).post(key="my-secret-key")
    records = [record for record in caplog.records if hasattr(record, "idempotency_outcome")]
    assert [record.__dict__["idempotency_outcome"] for record in records] == ["claimed", "completed"]
    assert [record.__dict__["idempotency_key"] for record in records] == [event.key for event in seen]
    assert all("{" in event.key for event in seen)
    assert "my-secret-key" not in caplog.text + repr(seen)


def test_a_receiver_that_fails_decides_nothing(make_app: Callable[..., Flask], serve: Callable[..., Server]) -> None:
    app = make_app()
    app.post("/")(idempotent(lambda: ("done", 201)))

    def fail(_app: Flask, event: Any) -> None:
        raise RuntimeError(event)

    with ExitStack() as stack:
        for signal in NAMES.values():
            stack.enter_context(signal.connected_to(fail, app))
        server = serve(app)
        answers = [server.post(key="k") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[1].headers["Idempotent-Replayed"] == "true"


def test_an_app_hears_of_its_own_requests_only(
    watched: tuple[Flask, list[Occurrence]], make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    _, seen = watched
    other = make_app("other")
    other.post("/")(idempotent(lambda: abort(404)))
    assert serve(other).post(key="k").status_code == 404
    assert seen == []


@pytest.mark.parametrize(
    ("header", "one", "two"),
    [
        ("If-Match", '"v1"', '"v2"'),
        ("If-None-Match", '"v1"', "*"),
        ("If-Unmodified-Since", "Mon, 23 Nov 2026 05:00:00 GMT", "Mon, 23 Nov 2026 06:00:00 GMT"),
        ("Range", "bytes=0-1", "bytes=2-3"),
    ],
)
def test_an_answer_to_one_condition_or_range_is_no_answer_to_another(
    make_app: Callable[..., Flask], serve: Callable[..., Server], header: str, one: str, two: str
) -> None:
    app = make_app()
    app.post("/")(idempotent(lambda: (request.headers[header], 206, {"Content-Range": "bytes 0-1/4"})))
    server = serve(app)
    first = server.post(key="k", headers={header: one})
    again = server.post(key="k", headers={header: one})
    assert (first.status_code, again.status_code, again.text) == (206, 206, one)
    assert again.headers["Content-Range"] == "bytes 0-1/4"
    assert_problem(server.post(key="k", headers={header: two}), "key-reused")
    assert_problem(server.post(key="k"), "key-reused")
