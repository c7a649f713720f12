"""Duplicates that come while the first request is running, and clients that go away."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import requests
from flask import Flask, Response, request

from flask_idempotent import idempotent

from .conftest import (
    HEADER,
    REPLAYED,
    Gate,
    Runs,
    Server,
    StoreUnderTest,
    Workers,
    assert_original,
    assert_problem,
    assert_replay,
    eventually,
    once_ended,
    redis_config,
)

HEAD = f"POST / HTTP/1.1\r\nHost: x\r\n{HEADER}: k\r\n"


@pytest.fixture
def pool(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    """Clients. The gate is opened before they are waited for."""
    with ThreadPoolExecutor(120) as pool:
        yield pool
        gate.open()


def gated(gate: Gate, runs: Runs) -> Callable[[], Any]:
    def view() -> Any:
        number = runs()
        gate()
        return {"run": number}, 201

    return view


def started(pool: ThreadPoolExecutor, gate: Gate, server: Server, **options: Any) -> Future[requests.Response]:
    """Send a request under the key ``k`` and wait until its view is running."""
    sent = pool.submit(server.post, key="k", **options)
    gate.await_view()
    return sent


def count_waits(servers: list[Server]) -> Runs:
    """Counts the duplicates that have found their key taken and begin to wait."""
    waits = Runs()

    def counted(store: Any) -> None:
        wait = store.wait
        store.wait = lambda *args: (waits(), wait(*args))[1]

    for server in servers:
        counted(server.app.extensions["idempotency"].state_of(server.app).store)
    return waits


# --- 409 ----------------------------------------------------------------------------------------------------------


def test_a_duplicate_of_a_running_request_gets_409_and_a_later_one_the_replay(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    servers = workers(lambda: gated(gate, runs))
    first = started(pool, gate, servers[0])
    for server in servers * 3:
        answer = server.post(key="k")
        assert assert_problem(answer, "request-in-progress")["retryable"] is True
        assert answer.headers["Retry-After"].isdigit()
        assert int(answer.headers["Retry-After"]) >= 1
    gate.open()
    assert_original(first.result())
    for server in servers:
        assert_replay(server.post(key="k"), first.result())
    assert runs.count == 1


def test_a_409_does_not_overwrite_the_outcome(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    """A duplicate that is being answered while the first request ends leaves the outcome alone."""
    servers = workers(lambda: gated(gate, runs))
    first = started(pool, gate, servers[0])
    duplicates = [pool.submit(servers[n % len(servers)].post, key="k") for n in range(20)]
    gate.open()
    statuses = Counter(duplicate.result().status_code for duplicate in duplicates)
    assert set(statuses) <= {201, 409}
    for server in servers * 2:
        assert_replay(server.post(key="k"), first.result())
    assert runs.count == 1


def test_another_request_under_a_running_key_gets_422_at_once(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    servers = workers(lambda: gated(gate, runs), wait=5)
    first = started(pool, gate, servers[0], json={"a": 1})
    for server in servers:
        assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
    gate.open()
    for server in servers:
        assert_replay(server.post(key="k", json={"a": 1}), first.result())
        assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
    assert runs.count == 1


def test_other_keys_run_beside_a_running_one(
    guarded: Callable[..., Server], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    server = guarded(gated(gate, runs))
    sent = [pool.submit(server.post, key=f"k-{number}") for number in range(10)]
    for _ in sent:
        gate.await_view()
    gate.open()
    assert sorted(answer.result().json()["run"] for answer in sent) == list(range(1, 11))


# --- wait ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["route", "setting"])
def test_with_wait_every_duplicate_gets_the_outcome(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs, how: str
) -> None:
    options: dict[str, Any] = {"wait": 10} if how == "route" else {"settings": {"wait": 10}}
    servers = workers(lambda: gated(gate, runs), **options)
    first = started(pool, gate, servers[0])
    waits = count_waits(servers)
    duplicates = [pool.submit(servers[n % len(servers)].post, key="k") for n in range(20)]
    eventually(lambda: waits.count == 20)
    assert not [duplicate for duplicate in duplicates if duplicate.done()]
    gate.open()
    for duplicate in duplicates:
        assert_replay(duplicate.result(), first.result())
    assert runs.count == 1


def test_a_waiter_is_answered_as_soon_as_the_outcome_is_there(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    servers = workers(lambda: gated(gate, runs), wait=15)
    first = started(pool, gate, servers[0])
    waits = count_waits(servers)
    waiters = [pool.submit(server.post, key="k") for server in servers]
    eventually(lambda: waits.count == len(servers))
    gate.open()
    opened = time.monotonic()
    for waiter in waiters:
        assert_replay(waiter.result(), first.result())
    assert time.monotonic() - opened < 3


@pytest.mark.parametrize("wait", [0.05, 0.3])
def test_when_the_wait_ends_first_the_duplicate_gets_409_and_frees_nothing(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs, wait: float
) -> None:
    servers = workers(lambda: gated(gate, runs), wait=wait)
    first = started(pool, gate, servers[0])
    for _ in range(2):
        for server in servers:
            began = time.monotonic()
            answer = server.post(key="k")
            assert_problem(answer, "request-in-progress")
            assert int(answer.headers["Retry-After"]) >= 1
            assert time.monotonic() - began >= wait
    assert runs.count == 1, "a waiter that gave up must not free the key"
    gate.open()
    for server in servers:
        assert_replay(server.post(key="k"), first.result())
    assert runs.count == 1


@pytest.mark.parametrize("ending", ["500", "exception", "401", "forgotten"])
def test_a_waiter_never_runs_the_view_when_the_first_request_comes_to_nothing(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs, ending: str
) -> None:
    def view() -> Any:
        runs()
        gate()
        if ending == "exception":
            raise LookupError("first")
        return {"run": runs.count}, {"500": 500, "401": 401, "forgotten": 200}[ending]

    servers = workers(lambda: view, wait=10, **({"save": lambda response: False} if ending == "forgotten" else {}))
    first = started(pool, gate, servers[0])
    waits = count_waits(servers)
    waiters = [pool.submit(server.post, key="k") for server in servers]
    eventually(lambda: waits.count == len(servers))
    gate.open()
    assert REPLAYED not in first.result().headers
    for waiter in waiters:
        assert_problem(waiter.result(), "request-in-progress")
    assert runs.count == 1
    servers[0].post(key="k")
    assert runs.count == 2, "the next request may run"


def test_waiters_cost_the_worker_no_other_requests(
    guarded: Callable[..., Server], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    """Forty waiting requests neither exhaust the connections to the store nor slow a new key down."""

    def view() -> Any:
        runs()
        if request.args.get("slow"):
            gate()
        return {}, 201

    server = guarded(view, wait=10)
    first = pool.submit(server.post, "/?slow=1", key="k")
    gate.await_view()
    waits = count_waits([server])
    waiters = [pool.submit(server.post, "/?slow=1", key="k") for _ in range(40)]
    eventually(lambda: waits.count == 40)
    for number in range(5):
        assert_original(server.post(key=f"other-{number}", timeout=3))
    gate.open()
    for waiter in waiters:
        assert_replay(waiter.result(), first.result())
    assert runs.count == 6


# --- Many at once ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [0, 10], ids=["409 at once", "waiting"])
@pytest.mark.parametrize("count", [50, 100])
def test_many_duplicates_at_once_run_the_view_once(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, runs: Runs, count: int, wait: float
) -> None:
    def view() -> Any:
        number = runs()
        time.sleep(0.05)  # long enough for the others to come in between
        return {"run": number}, 201

    servers = workers(lambda: view, wait=wait)
    together = threading.Barrier(count)

    def send(number: int) -> requests.Response:
        together.wait()
        return servers[number % len(servers)].post(key="k", json={"a": 1})

    answers = list(pool.map(send, range(count)))
    assert runs.count == 1
    originals = [answer for answer in answers if answer.status_code == 201 and REPLAYED not in answer.headers]
    assert len(originals) == 1
    for answer in answers:
        if answer.status_code == 409 and not wait:
            assert_problem(answer, "request-in-progress")
        elif answer is not originals[0]:
            assert_replay(answer, originals[0])


def test_many_keys_of_many_clients_run_once_each(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, runs: Runs
) -> None:
    seen: Counter[str] = Counter()

    def view() -> Any:
        runs()
        seen[request.headers[HEADER]] += 1
        return {"key": request.headers[HEADER]}, 201

    servers = workers(lambda: view, wait=10)

    def send(number: int) -> requests.Response:
        return servers[number % len(servers)].post(key=f"k-{number // 6}")

    for number, answer in enumerate(pool.map(send, range(120))):
        assert (answer.status_code, answer.json()["key"]) == (201, f"k-{number // 6}")
    assert set(seen.values()) == {1}
    assert runs.count == 20


@pytest.mark.redis
def test_two_processes_on_one_redis_run_a_view_once(
    redis_server: Any, processes: Workers, pool: ThreadPoolExecutor
) -> None:
    workers = processes.start({**redis_config(redis_server), "IDEMPOTENCY_WAIT": 10}, count=2)
    for number in range(5):
        answers = list(pool.map(lambda n: workers[n % 2].post(key=f"k-{number}", json={"n": number}), range(30)))  # noqa: B023
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.json()["worker"] for answer in answers}) == 1
        assert [REPLAYED in answer.headers for answer in answers].count(False) == 1
        assert len(processes.lines("began")) == number + 1


# --- Clients that go away -------------------------------------------------------------------------------------------


def test_a_client_that_goes_away_while_the_view_runs_finds_the_outcome_later(
    workers: Callable[..., list[Server]], gate: Gate, runs: Runs
) -> None:
    servers = workers(lambda: gated(gate, runs))
    with closing(servers[0].connect()) as connection:
        connection.sendall(f"{HEAD}Content-Length: 0\r\n\r\n".encode())
        gate.await_view()
    assert_problem(servers[-1].post(key="k"), "request-in-progress")
    gate.open()
    for server in servers:
        answer = once_ended(server)
        assert (answer.status_code, answer.json(), answer.headers[REPLAYED]) == (201, {"run": 1}, "true")
    assert runs.count == 1


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_a_client_that_goes_away_before_its_body_is_whole_has_not_asked_for_anything(
    guarded: Callable[..., Server], runs: Runs, framing: str
) -> None:
    server = guarded(lambda: ({"run": runs(), "got": request.get_data(as_text=True)}, 201))
    with closing(server.connect()) as connection:
        head = HEAD.replace("/ HTTP", "/?half=1 HTTP")
        connection.sendall(f"{head}Content-Type: text/plain\r\n{framing}\r\n\r\n3\r\nabc\r\n".encode())
    answer = server.post(key="k", data=b"whole", headers={"Content-Type": "text/plain"})
    assert_original(answer)
    assert answer.json() == {"run": 1, "got": "whole"}


def stream_of(count: int, ended: Runs) -> Callable[[], Response]:
    def view() -> Response:
        def chunks() -> Iterator[bytes]:
            for number in range(count):
                yield b"%08d " % number * 1000
            ended()

        return Response(chunks())

    return view


def go_away_after_the_first_chunk(server: Server) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(f"{HEAD}Content-Length: 0\r\n\r\n".encode())
        received = b""
        while b"00000000 " not in received:
            received += connection.recv(1000)


def test_a_client_that_goes_away_in_the_middle_of_a_stream_finds_all_of_it_later(
    workers: Callable[..., list[Server]], runs: Runs
) -> None:
    ended = Runs()
    servers = workers(
        lambda: lambda: (runs(), stream_of(600, ended)())[1], max_body=10_000_000
    )  # more than the sockets hold
    go_away_after_the_first_chunk(servers[0])
    whole = b"".join(b"%08d " % number * 1000 for number in range(600))
    for server in servers:
        answer = once_ended(server)
        assert answer.content == whole
        assert answer.headers[REPLAYED] == "true"
    assert (runs.count, ended.count) == (1, 1)


def test_a_stream_over_the_limit_whose_client_went_away_is_not_taken_for_done_half_way(
    guarded: Callable[..., Server], runs: Runs
) -> None:
    """The work that the stream does is either finished, or done again by the retry; it is not recorded half done."""
    ended = Runs()
    server = guarded(lambda: (runs(), stream_of(600, ended)())[1], max_body=1000)
    go_away_after_the_first_chunk(server)
    answer = once_ended(server)
    assert ended.count == 1 or REPLAYED not in answer.headers
    assert eventually(lambda: ended.count) == 1


def test_the_app_and_its_store_are_well_after_clients_went_away(
    make_app: Callable[..., Flask], serve: Callable[..., Server], store: StoreUnderTest, runs: Runs
) -> None:
    app = make_app()
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    for number in range(20):
        with closing(server.connect()) as connection:
            connection.sendall(f"{HEAD.replace(': k', f': k-{number}')}Content-Length: 0\r\n\r\n".encode())
    eventually(lambda: runs.count == 20)
    for number in range(20):
        assert eventually(lambda n=number: server.post(key=f"k-{n}").headers.get(REPLAYED)) == "true"
    assert runs.count == 20
    assert app.extensions["idempotency"].health(app)["status"] == "healthy"
