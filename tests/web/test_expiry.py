"""The ends of a record: retention, dead and frozen workers, a store that is lost, and records that cannot be read."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from flask import Flask, Response

from flask_idempotent import Idempotency, current_idempotency, idempotent

from ..servers.standalone import RedisProcess
from .conftest import (
    REPLAYED,
    Gate,
    Runs,
    Server,
    Worker,
    Workers,
    assert_original,
    assert_problem,
    assert_replay,
    eventually,
    once_ended,
    redis_config,
    setting_names,
)

DEGRADED = "Idempotency-Degraded"
LEASE = 0.8  # seconds, of the workers that are killed


@pytest.fixture
def pool(gate: Gate) -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool
        gate.open()


def lost(client: Any, **options: Any) -> requests.Response | None:
    """The answer; None when the worker went away."""
    try:
        return client.post(**options)
    except requests.ConnectionError:
        return None


# --- Retention ------------------------------------------------------------------------------------------------------


def test_after_its_retention_a_key_is_new(workers: Callable[..., list[Server]], runs: Runs) -> None:
    servers = workers(lambda: lambda: ({"run": runs()}, 201), settings={"ttl": 0.5})
    began = time.monotonic()
    first = servers[0].post(key="k", json={"a": 1})
    again = servers[-1].post(key="k", json={"a": 1})
    if time.monotonic() - began < 0.4:
        assert_replay(again, first)
    fresh = eventually(
        lambda: (answer := servers[-1].post(key="k", json={"a": 2})).status_code == 201 and answer, within=3
    )
    assert time.monotonic() - began >= 0.49
    assert_original(fresh)
    assert fresh.json() == {"run": 2}


def test_a_failure_is_forgotten_after_its_retention(workers: Callable[..., list[Server]]) -> None:
    servers = workers(lambda: lambda: ({"attempt": current_idempotency.attempt}, 500), ttl=0.5, lease=0.2)
    servers[0].post(key="k", json={"a": 1})
    assert_problem(servers[-1].post(key="k", json={"a": 2}), "key-reused")
    fresh = eventually(
        lambda: (answer := servers[-1].post(key="k", json={"a": 2})).status_code == 500 and answer, within=3
    )
    assert fresh.json() == {"attempt": 1}


# --- Leases ---------------------------------------------------------------------------------------------------------


def test_a_view_longer_than_its_lease_keeps_its_key(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    def view() -> Any:
        number = runs()
        gate()
        return {"run": number}, 201

    servers = workers(lambda: view, lease=0.6)
    first = pool.submit(servers[0].post, key="k")
    gate.await_view()
    three_leases_on = time.monotonic() + 2.0
    while time.monotonic() < three_leases_on:
        for server in servers:
            assert_problem(server.post(key="k"), "request-in-progress")
    gate.open()
    assert_original(first.result())
    for server in servers:
        assert_replay(server.post(key="k"), first.result())
    assert runs.count == 1


def test_a_view_past_its_longest_runtime_loses_its_key_and_its_late_outcome(
    workers: Callable[..., list[Server]], pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    def view() -> Any:
        if (number := runs()) == 1:
            gate()
        return {"run": number, "attempt": current_idempotency.attempt}, 201

    servers = workers(lambda: view, lease=0.3, max_runtime=0.3)
    slow = pool.submit(servers[0].post, key="k")
    gate.await_view()
    assert_problem(servers[-1].post(key="k"), "request-in-progress")
    second = once_ended(servers[-1])
    assert_original(second)
    assert second.json() == {"run": 2, "attempt": 2}
    gate.open()
    assert_original(slow.result())
    assert slow.result().json() == {"run": 1, "attempt": 1}
    for server in servers * 2:
        assert_replay(server.post(key="k"), second)
    assert runs.count == 2


class Crash:
    """Two worker processes on one Redis; the first dies, or is frozen, in the middle of its view."""

    def __init__(self, processes: Workers, redis: RedisProcess, pool: ThreadPoolExecutor, **settings: Any) -> None:
        config = {**redis_config(redis), **setting_names({"lease": LEASE, **settings})}
        self.processes = processes
        self.victim, self.other = processes.start(config, count=2)
        processes.hold.touch()
        self.lost = pool.submit(lost, self.victim, key="k", json={"a": 1})
        eventually(lambda: processes.lines("began"), "the view did not begin")

    def retry(self, client: Worker | None = None, amount: int = 1) -> requests.Response:
        return (client or self.other).post(key="k", json={"a": amount})


@pytest.fixture
def crash(redis_server: RedisProcess, processes: Workers, pool: ThreadPoolExecutor) -> Iterator[Callable[..., Crash]]:
    yield lambda **settings: Crash(processes, redis_server, pool, **settings)
    processes.hold.unlink(missing_ok=True)


@pytest.mark.redis
def test_a_worker_killed_in_the_middle_blocks_its_key_until_its_lease_ends_and_then_the_retry_runs(
    crash: Callable[..., Crash],
) -> None:
    scene = crash()
    scene.victim.kill()
    killed = time.monotonic()
    assert scene.lost.result() is None
    assert_problem(scene.retry(), "request-in-progress")
    scene.processes.hold.unlink()
    answer = once_ended(scene.other, json={"a": 1})
    waited = time.monotonic() - killed
    assert LEASE / 2 < waited < LEASE + 2, f"the key was free after {waited:.1f} s"
    assert_original(answer)
    assert answer.json()["attempt"] == 2
    began = [line.split() for line in scene.processes.lines("began")]
    assert [attempt for _, attempt, _ in began] == ["1", "2"]
    assert len({derived for _, _, derived in began}) == 1, "the retry gives the payment service the same key"
    assert len(scene.processes.lines("ended")) == 1
    assert_replay(scene.retry(), answer)


@pytest.mark.redis
def test_another_request_under_the_key_of_a_dead_worker_gets_422_even_when_its_lease_is_over(
    crash: Callable[..., Crash],
) -> None:
    scene = crash()
    scene.victim.kill()
    assert_problem(scene.retry(amount=2), "key-reused")
    scene.processes.hold.unlink()
    time.sleep(LEASE)  # no proof rests on it: whether the lease is over or not, the answer is the same
    assert_problem(scene.retry(amount=2), "key-reused")
    assert_original(once_ended(scene.other, json={"a": 1}))
    assert_problem(scene.retry(amount=2), "key-reused")


@pytest.mark.redis
def test_a_route_that_refuses_to_guess_answers_outcome_unknown_after_a_crash(crash: Callable[..., Crash]) -> None:
    scene = crash(on_crash="refuse")
    scene.victim.kill()
    assert_problem(scene.retry(), "request-in-progress")
    answer = eventually(lambda: (answer := scene.retry()).json()["code"] == "outcome-unknown" and answer)
    assert assert_problem(answer, "outcome-unknown")["retryable"] is False
    assert_problem(scene.retry(), "outcome-unknown")
    assert len(scene.processes.lines("began")) == 1


@pytest.mark.redis
def test_a_worker_that_was_frozen_past_its_lease_does_not_overwrite_the_newer_outcome(
    crash: Callable[..., Crash],
) -> None:
    scene = crash()
    scene.victim.freeze()
    assert_problem(scene.retry(), "request-in-progress")
    scene.processes.hold.unlink()
    newer = once_ended(scene.other, json={"a": 1})
    assert_original(newer)
    assert newer.json()["attempt"] == 2
    scene.victim.thaw()
    late = scene.lost.result()
    assert late is not None
    assert_original(late)
    assert late.json()["attempt"] == 1, "its client still gets what its view has said"
    for client in (scene.other, scene.victim, scene.other, scene.victim):
        assert_replay(scene.retry(client), newer)
    assert len(scene.processes.lines("began")) == 2


@pytest.mark.redis
def test_an_outcome_survives_the_restart_of_the_app(redis_server: RedisProcess, processes: Workers) -> None:
    config = redis_config(redis_server)
    (worker,) = processes.start(config)
    first = worker.post(key="k", json={"a": 1})
    assert_original(first)
    worker.kill()
    (worker,) = processes.start(config)
    assert_replay(worker.post(key="k", json={"a": 1}), first)
    assert_problem(worker.post(key="k", json={"a": 2}), "key-reused")
    assert len(processes.lines("began")) == 1


# --- The store is lost ----------------------------------------------------------------------------------------------


class Outage:
    """Apps on a Redis of the test's own, which can be stopped and started again."""

    def __init__(self, redis: RedisProcess, bare_app: Callable[..., Flask], serve: Callable[..., Server]) -> None:
        self.redis, self._bare_app, self._serve = redis, bare_app, serve

    def server(self, view: Callable[[], Any], settings: dict[str, Any] | None = None, **options: Any) -> Server:
        app = self._bare_app(IDEMPOTENCY_CACHE_REDIS_URL=self.redis.url, **setting_names(settings or {}))
        Idempotency(app)
        app.post("/")(idempotent(**options)(view))
        return self._serve(app)

    def end(self, server: Server) -> None:
        """Start Redis again and wait until the app has noticed."""
        self.redis.start()
        extension = server.app.extensions["idempotency"]
        eventually(lambda: extension.health(server.app)["status"] == "healthy")


@pytest.fixture
def outage(new_redis: Any, bare_app: Any, serve: Any) -> Outage:
    return Outage(new_redis().start(), bare_app, serve)


BOTH_WAYS = pytest.mark.parametrize("how", ["route", "setting"])


def policy(how: str, on_outage: str, **more: Any) -> dict[str, Any]:
    return {"on_outage": on_outage} if how == "route" else {"settings": {"on_outage": on_outage}}


@pytest.mark.redis
@BOTH_WAYS
def test_without_redis_local_goes_on_alone(outage: Outage, runs: Runs, how: str) -> None:
    server = outage.server(lambda: ({"run": runs()}, 201), **policy(how, "local"))
    before = server.post(key="before")
    outage.redis.stop()
    first = server.post(key="k", json={"a": 1})
    assert_original(first)
    assert DEGRADED not in first.headers
    for _ in range(3):
        assert_replay(server.post(key="k", json={"a": 1}), first)
        assert_replay(server.post(key="before"), before)
    assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
    assert runs.count == 2


@pytest.mark.redis
@BOTH_WAYS
@pytest.mark.parametrize("local_tier", ["memory", None])
def test_without_redis_reject_runs_nothing_new(outage: Outage, runs: Runs, how: str, local_tier: str | None) -> None:
    options = policy(how, "reject")
    options["settings"] = {**options.get("settings", {}), "local_tier": local_tier, "on_outage": "reject"}
    server = outage.server(lambda: ({"run": runs()}, 201), **options)
    before = server.post(key="before")
    outage.redis.stop()
    for _ in range(4):
        answer = server.post(key="k")
        assert assert_problem(answer, "store-unavailable")["retryable"] is True
        assert int(answer.headers["Retry-After"]) >= 1
    if local_tier:
        assert_replay(server.post(key="before"), before)
    assert_original(server.post())  # without a key there is nothing to look up
    assert runs.count == 2
    outage.end(server)
    first = eventually(lambda: (answer := server.post(key="k")).ok and answer)  # the breaker may lag behind
    assert_original(first)
    assert_replay(server.post(key="k"), first)
    assert runs.count == 3


@pytest.mark.redis
@BOTH_WAYS
@pytest.mark.parametrize("local_tier", ["memory", None])
def test_without_redis_execute_runs_unprotected_and_says_so(
    outage: Outage, runs: Runs, how: str, local_tier: str | None
) -> None:
    options = policy(how, "execute")
    options["settings"] = {**options.get("settings", {}), "local_tier": local_tier, "on_outage": "execute"}
    seen = []
    server = outage.server(
        lambda: (seen.append(current_idempotency.derive("x")), ({"run": runs(), "key": current_idempotency.key}, 201))[
            1
        ],
        **options,
    )
    first = server.post(key="before")
    assert_original(first)
    assert DEGRADED not in first.headers
    outage.redis.stop()
    for _ in range(2):
        answer = server.post(key="k")
        assert_original(answer)
        assert answer.headers[DEGRADED] == "true"
        assert answer.json()["key"] == "k"
    assert runs.count == 3
    assert seen[1] == seen[2], "what the view hands on is still protected there"
    outage.end(server)
    answer = eventually(lambda: DEGRADED not in (answer := server.post(key="later")).headers and answer)
    assert_replay(server.post(key="later"), answer)


@pytest.mark.redis
@pytest.mark.parametrize("fault", ["an exception", "an error page"])
def test_execute_marks_the_answer_to_a_failure_as_well(outage: Outage, runs: Runs, fault: str) -> None:
    def view() -> Any:
        runs()
        if fault == "an exception":
            raise LookupError
        return "sorry", 500

    server = outage.server(view, on_outage="execute")
    outage.redis.stop()
    answer = server.post(key="k")
    assert (answer.status_code, answer.headers.get(DEGRADED)) == (500, "true")
    assert runs.count == 1


@pytest.mark.redis
def test_each_route_has_its_own_policy(outage: Outage, runs: Runs, bare_app: Any, serve: Any) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=outage.redis.url)
    Idempotency(app)
    for name in ("local", "reject", "execute"):
        app.post(f"/{name}", endpoint=name)(idempotent(on_outage=name)(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    outage.redis.stop()
    found = {name: [server.post(f"/{name}", key="k") for _ in range(2)] for name in ("local", "reject", "execute")}
    assert {name: [answer.status_code for answer in answers] for name, answers in found.items()} == {
        "local": [201, 201],
        "reject": [503, 503],
        "execute": [201, 201],
    }
    assert [answer.headers.get(REPLAYED) for answer in found["local"]] == [None, "true"]
    assert [answer.headers.get(DEGRADED) for answer in found["execute"]] == ["true", "true"]
    assert runs.count == 3


@pytest.mark.redis
@pytest.mark.parametrize("on_outage", ["local", "reject", "execute"])
def test_a_frozen_redis_costs_a_bounded_time(outage: Outage, runs: Runs, on_outage: str) -> None:
    server = outage.server(lambda: ({"run": runs()}, 201), settings={"store_timeout": 0.2}, on_outage=on_outage)
    server.post(key="warm")
    outage.redis.freeze()
    times = []
    for number in range(6):
        began = time.monotonic()
        answer = server.post(key=f"k-{number}")
        times.append(time.monotonic() - began)
        assert answer.status_code == (503 if on_outage == "reject" else 201)
    assert max(times) < 2, times
    assert sorted(times)[2] < 0.2, f"once the outage is known nobody waits for it: {times}"
    outage.redis.thaw()
    eventually(lambda: server.post(key="after").headers.get(REPLAYED))


@pytest.mark.redis
@pytest.mark.parametrize("on_outage", ["local", "reject", "execute"])
def test_when_redis_is_lost_after_the_view_ran_its_client_gets_the_answer(
    outage: Outage, runs: Runs, on_outage: str
) -> None:
    """The outcome is kept here, duplicates do not run here, and other workers find it when Redis is back, empty."""

    def view() -> Any:
        runs()
        outage.redis.stop()
        return {"run": runs.count}, 201, {"X-Kept": "1"}

    server = outage.server(view, on_outage=on_outage)
    first = server.post(key="k", json={"a": 1})
    assert_original(first)
    for _ in range(3):
        assert_replay(server.post(key="k", json={"a": 1}), first)
        assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
    assert runs.count == 1
    outage.end(server)
    with outage.redis.client() as client:
        eventually(lambda: client.keys("*"), "the outcome was not written back")
    other = outage.server(view, on_outage=on_outage)
    assert_replay(other.post(key="k", json={"a": 1}), first)
    assert runs.count == 1


@pytest.mark.redis
def test_without_a_local_tier_a_finished_view_is_no_error_either(outage: Outage, runs: Runs) -> None:
    def view() -> Any:
        runs()
        outage.redis.stop()
        return {"run": runs.count}, 201

    server = outage.server(view, settings={"local_tier": None, "on_outage": "reject"})
    assert_original(server.post(key="k"))
    assert_problem(server.post(key="k"), "store-unavailable")
    assert runs.count == 1


@pytest.mark.redis
@pytest.mark.parametrize("ending", [401, 500])
def test_refusals_and_failures_are_noted_without_redis(outage: Outage, runs: Runs, ending: int) -> None:
    def view() -> Any:
        if runs() == 1:
            outage.redis.stop()
            return {}, ending
        return {"attempt": current_idempotency.attempt}, 201

    server = outage.server(view)
    assert server.post(key="k", json={"a": 1}).status_code == ending
    if ending == 500:
        assert_problem(server.post(key="k", json={"a": 2}), "key-reused")
    answer = server.post(key="k", json={"a": 1 if ending == 500 else 2})
    assert_original(answer)
    assert answer.json()["attempt"] == (2 if ending == 500 else 1)


@pytest.mark.redis
def test_a_stream_outlives_the_loss_of_redis(outage: Outage, runs: Runs) -> None:
    def view() -> Response:
        runs()

        def chunks() -> Iterator[str]:
            yield "first "
            outage.redis.stop()
            yield "last"

        return Response(chunks())

    server = outage.server(view)
    first = server.post(key="k")
    assert first.text == "first last"
    assert_replay(server.post(key="k"), first)
    assert runs.count == 1


@pytest.mark.redis
def test_a_running_view_is_known_again_to_a_redis_that_came_back_empty(
    outage: Outage, pool: ThreadPoolExecutor, gate: Gate, runs: Runs
) -> None:
    def view() -> Any:
        number = runs()
        gate()
        return {"run": number}, 201

    server, other = (outage.server(view, lease=1.0) for _ in range(2))
    first = pool.submit(server.post, key="k")
    gate.await_view()
    outage.redis.stop()
    outage.redis.start()  # empty: the claim is gone from it
    with outage.redis.client() as client:
        eventually(lambda: client.keys("*"), "the heartbeat has not put the claim back", within=3)
    assert_problem(other.post(key="k"), "request-in-progress")
    gate.open()
    assert_original(first.result())
    assert_replay(once_ended(other), first.result())
    assert runs.count == 1


# --- Records that cannot be read --------------------------------------------------------------------------------------


class Spoiled:
    """A finished request whose record in Redis the test then rewrites, and a fresh worker that has to read it."""

    def __init__(self, redis: RedisProcess, make_worker: Callable[[], Server], runs: Runs) -> None:
        self._redis, self.runs = redis, runs
        self.first = make_worker().post(key="k", json={"a": 1})
        assert_original(self.first)
        self.reader = make_worker()
        with redis.client() as client:
            (self.name,) = client.keys("*")
            self.record = client.get(self.name)

    def answer(self, record: bytes) -> requests.Response:
        with self._redis.client() as client:
            client.set(self.name, record, px=60_000)
        return self.reader.post(key="k", json={"a": 1})


@pytest.fixture(params=["with a local tier", "Redis alone"])
def spoiled(request: Any, redis_server: RedisProcess, bare_app: Any, serve: Any, runs: Runs) -> Spoiled:
    settings = (
        {"local_tier": None, "on_outage": "reject"} if request.param == "Redis alone" else {"local_tier": "memory"}
    )

    def make_worker() -> Server:
        app = bare_app(**redis_config(redis_server), **setting_names(settings))
        Idempotency(app)
        app.post("/")(idempotent(lambda: ({"run": runs(), "long": "x" * 3000}, 201)))
        return serve(app)

    return Spoiled(redis_server, make_worker, runs)


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a record was executed",))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda record: b"",
    "one byte": lambda record: record[:1],
    "half a head": lambda record: record[:30],
    "a head without its answer": lambda record: record[:65],
    "a head and half a checksum": lambda record: record[:67],
    "truncated by one byte": lambda record: record[:-1],
    "truncated by half": lambda record: record[: len(record) // 2],
    "longer by one byte": lambda record: record + b"\0",
    "an unknown state": lambda record: record[:1] + b"X" + record[2:],
    "version 0": lambda record: b"\0" + record[1:],
    "no attempt": lambda record: record[:2] + b"\0\0" + record[4:],
    "no deadline": lambda record: record[:52] + b"not-a-number!" + record[65:],
    "a flipped bit in the body": lambda record: record[:-2] + bytes([record[-2] ^ 1]) + record[-1:],
    "a flipped bit in the checksum": lambda record: record[:65] + bytes([record[65] ^ 128]) + record[66:],
    "another owner": lambda record: record[:4] + bytes(16) + record[20:],
    "unknown flags": lambda record: record[:69] + b"\xff" + record[70:],
    "pending with an answer": lambda record: record[:1] + b"P" + record[2:],
    "failed with an answer": lambda record: record[:1] + b"F" + record[2:],
    "a pickle": lambda record: pickle.dumps(Bomb()),
    "a pickle with a head": lambda record: record[:65] + pickle.dumps(Bomb()),
    "JSON": lambda record: json.dumps({"status": 200, "body": "forged"}).encode(),
    "zeros": lambda record: b"\x01" + bytes(200),
}


@pytest.mark.redis
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_record_is_an_error_and_never_a_second_run(
    spoiled: Spoiled, damage: Callable[[bytes], bytes]
) -> None:
    for _ in range(2):
        answer = spoiled.answer(damage(spoiled.record))
        newer = damage(spoiled.record)[:1] > b"\x01"
        assert_problem(answer, "store-unavailable" if newer else "record-unreadable")
    assert spoiled.runs.count == 1


@pytest.mark.redis
def test_no_flipped_bit_runs_a_view_or_changes_its_answer(spoiled: Spoiled) -> None:
    for position in [*range(70), *range(70, len(spoiled.record), 7)]:
        flipped = bytearray(spoiled.record)
        flipped[position] ^= 1 << position % 8
        answer = spoiled.answer(bytes(flipped))
        if answer.ok:
            assert 52 <= position < 65, "only the deadline is not part of the checksum"
            assert answer.content == spoiled.first.content
        else:
            assert answer.json()["code"] in ("record-unreadable", "key-reused", "store-unavailable"), answer.text
    assert spoiled.runs.count == 1


@pytest.mark.redis
@pytest.mark.parametrize("version", [2, 3, 255])
def test_a_record_of_a_later_version_is_answered_503_and_never_run(spoiled: Spoiled, version: int) -> None:
    """In a rolling deploy the old workers leave to the new ones what they cannot read."""
    answer = spoiled.answer(bytes([version]) + spoiled.record[1:])
    assert assert_problem(answer, "store-unavailable")["retryable"] is True
    assert int(answer.headers["Retry-After"]) >= 1
    assert_replay(spoiled.answer(spoiled.record), spoiled.first)
    assert spoiled.runs.count == 1


@pytest.mark.redis
def test_a_value_of_another_redis_type_is_answered_503(spoiled: Spoiled, redis_server: RedisProcess) -> None:
    with redis_server.client() as client:
        client.delete(spoiled.name)
        client.rpush(spoiled.name, "a list")
    assert_problem(spoiled.reader.post(key="k", json={"a": 1}), "store-unavailable")
    assert spoiled.runs.count == 1


def test_a_full_store_refuses_new_keys_and_drops_no_old_ones(bare_app: Any, serve: Any, runs: Runs) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache", IDEMPOTENCY_CACHE_THRESHOLD=3)
    Idempotency(app)
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    answers = {key: server.post(key=key) for key in ("a", "b", "c")}
    assert_problem(server.post(key="d"), "store-unavailable")
    for key, answer in answers.items():
        assert_replay(server.post(key=key), answer)
    assert_original(server.post())
    assert runs.count == 4


def test_no_thread_of_the_guard_keeps_a_process_alive(guarded: Callable[..., Server]) -> None:
    guarded(lambda: "x").post(key="k")
    assert [thread.name for thread in threading.enumerate() if "idempotency" in thread.name and not thread.daemon] == []
