"""``idempotency.run``: a function runs once per key, with no request around it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app, has_request_context

from flask_idempotent import (
    ConfigurationError,
    Idempotency,
    IdempotencyError,
    KeyReused,
    OutcomeUnknown,
    RecordUnreadable,
    RequestInProgress,
    StoreUnavailable,
    current_idempotency,
    idempotent,
    signals,
)

from .conftest import HEADER, Gate, Runs, assert_problem, eventually, redis_config, setting_names

CALLS: list[tuple[Any, ...]] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    CALLS.clear()


@pytest.fixture
def idempotency(make_app: Callable[..., Flask]) -> Idempotency:
    return make_app().extensions["idempotency"]


def note(*args: Any, **kwargs: Any) -> Any:
    CALLS.append((*args, *kwargs.items()))
    return {"calls": len(CALLS), "said": [args, kwargs]}


def other(*args: Any, **kwargs: Any) -> Any:
    return note("other", *args, **kwargs)


def facts() -> dict[str, Any]:
    return {
        "key": current_idempotency.key,
        "attempt": current_idempotency.attempt,
        "charge": current_idempotency.derive("charge"),
    }


# --- Once ---------------------------------------------------------------------------------------------------------


def test_a_function_runs_once_and_every_call_gets_its_result(idempotency: Idempotency) -> None:
    results = [idempotency.run("k", note, 1, two=2) for _ in range(3)]
    assert results == 3 * [{"calls": 1, "said": [[1], {"two": 2}]}]
    assert CALLS == [(1, ("two", 2))]


def test_another_key_is_another_run(idempotency: Idempotency) -> None:
    assert [idempotency.run(key, note)["calls"] for key in ("a", "b", "a b\n☃", "a")] == [1, 2, 3, 1]


@pytest.mark.parametrize("result", [None, 0, False, "", [], {}, 0.0, "é\ud800", 10**400, [1, [2.5, None]]], ids=repr)
def test_a_result_is_replayed_as_it_was_however_empty(idempotency: Idempotency, runs: Runs, result: Any) -> None:
    def give() -> Any:
        runs()
        return result

    for _ in range(2):
        again = idempotency.run("k", give)
        assert (again, type(again)) == (result, type(result))
    assert runs.count == 1


def test_the_first_call_gets_what_the_others_get(idempotency: Idempotency) -> None:
    """A caller must not come to rely on a tuple that no replay gives."""
    results = [idempotency.run("k", lambda: ({"z": (1, 2), 3: "a"}, None)) for _ in range(2)]
    assert results == 2 * [[{"z": [1, 2], "3": "a"}, None]]
    assert list(results[0][0]) == ["z", "3"]


def test_apps_and_scopes_keep_their_keys_apart_and_requests_too(make_app: Any, serve: Any, runs: Runs) -> None:
    shop, bank = make_app("shop"), make_app("bank")
    shop.post("/")(idempotent(lambda: str(runs())))
    assert serve(shop).post(key="k").text == "1"
    idempotency = shop.extensions["idempotency"]
    results = [
        idempotency.run("k", runs),
        idempotency.runner(scope="mails").run("k", runs),
        idempotency.runner(scope="bills").run("k", runs),
        idempotency.runner(scope="mails").run("k", runs),
        bank.extensions["idempotency"].run("k", runs),
        idempotency.run("k", runs),
    ]
    assert results == [2, 3, 4, 3, 5, 2]


def test_a_retention_ends(idempotency: Idempotency, runs: Runs) -> None:
    runner = idempotency.runner(ttl=timedelta(seconds=0.2))
    assert runner.run("k", runs) == 1
    assert eventually(lambda: runner.run("k", runs) != 1)


# --- The same call ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run("k", note, 2),
        lambda run: run("k", note, 1, 1),
        lambda run: run("k", note, 1.0),
        lambda run: run("k", note, True),
        lambda run: run("k", note, "1"),
        lambda run: run("k", note, [1]),
        lambda run: run("k", note, one=1),
        lambda run: run("k", note),
        lambda run: run("k", other, 1),
        lambda run: run("k", functools.partial(note, 1), 1),
    ],
)
def test_another_call_under_a_key_is_refused(idempotency: Idempotency, call: Callable[..., Any]) -> None:
    first = idempotency.run("k", note, 1)
    with pytest.raises(KeyReused):
        call(idempotency.run)
    assert idempotency.run("k", note, 1) == first
    assert CALLS == [(1,)]


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run("k", note, {"b": [1, 2], "a": None}, z=1, y=2),
        lambda run: run("k", note, {"a": None, "b": (1, 2)}, y=2, z=1),
        lambda run: run("k", functools.partial(note, {"a": None, "b": (1, 2)}, y=2), z=1),
        lambda run: run("k", functools.partial(functools.partial(note, y=3, z=1), {"a": None, "b": [1, 2]}), y=2),
    ],
)
def test_the_same_call_in_other_words_is_the_same(idempotency: Idempotency, call: Callable[..., Any]) -> None:
    idempotency.run("k", note, {"b": [1, 2], "a": None}, y=2, z=1)
    assert call(idempotency.run)["calls"] == 1


@pytest.mark.parametrize("argument", [object(), {1, 2}, b"x", float("nan"), {(1, 2): 3}, 1j, {1: 1, "1": 1}])
def test_arguments_that_are_not_json_are_refused_before_anything_runs(idempotency: Idempotency, argument: Any) -> None:
    with pytest.raises(TypeError, match=r"the arguments of note cannot be written as JSON .*fingerprint="):
        idempotency.run("k", note, argument)
    assert CALLS == []
    assert idempotency.run("k", note)["calls"] == 1, "the key was not touched"


def test_what_counts_can_be_told(idempotency: Idempotency, runs: Runs) -> None:
    class Order:
        id = "17"

    def ship(order: Any) -> int:
        return runs()

    runner = idempotency.runner(fingerprint=lambda order: order.id)
    assert [runner.run("k", ship, Order()) for _ in range(2)] == [1, 1]
    Order.id = "18"
    with pytest.raises(KeyReused):
        runner.run("k", ship, Order())
    in_bytes = idempotency.runner(fingerprint=lambda order: order.id.encode())
    with pytest.raises(KeyReused):
        in_bytes.run("k", other, Order())


def test_the_arguments_may_be_said_not_to_count(idempotency: Idempotency) -> None:
    runner = idempotency.runner(fingerprint=None)
    assert [runner.run("k", id, argument) for argument in (object, 1)] == 2 * [id(object)]
    with pytest.raises(KeyReused):
        runner.run("k", other, 1)


class Callables:
    def method(self) -> str:
        return "method"

    @classmethod
    def of_class(cls) -> str:
        return "class"

    def __call__(self) -> str:
        return "instance"


async def asynchronous() -> str:
    return f"async {current_idempotency.key}"


@pytest.mark.parametrize(
    ("function", "result"),
    [
        (Callables().method, "method"),
        (Callables.of_class, "class"),
        (Callables(), "instance"),
        (asynchronous, "async k"),
        (lambda: "lambda", "lambda"),
        (str, ""),
    ],
)
def test_whatever_can_be_called_can_be_run(idempotency: Idempotency, function: Any, result: str) -> None:
    assert [idempotency.run("k", function) for _ in range(2)] == [result, result]


def test_names_of_arguments_are_the_functions_own(idempotency: Idempotency) -> None:
    said = idempotency.run("k", note, self=1, key=2, function=3, app=4, ttl=5)["said"]
    assert said == [[], {"self": 1, "key": 2, "function": 3, "app": 4, "ttl": 5}]


@pytest.mark.parametrize("key", ["", None, 7, b"k"])
def test_a_key_is_a_text(idempotency: Idempotency, key: Any) -> None:
    with pytest.raises(ValueError, match="must be a non-empty string"):
        idempotency.run(key, note)


def test_a_wrong_option_is_named_when_the_runner_is_made() -> None:
    with pytest.raises(ConfigurationError, match=r"Idempotency.runner\(tll=...\) is not a setting; did you mean .*ttl"):
        Idempotency().runner(tll=3)
    with pytest.raises(ConfigurationError, match=r"runner\(required=...\)"):
        Idempotency().runner(required=True)
    with pytest.raises(ConfigurationError, match=r"runner\(lease=...\) must be"):
        Idempotency().runner(lease="1")


# --- Which app ----------------------------------------------------------------------------------------------------


def test_it_is_the_current_app_else_the_only_one_else_the_named_one(make_app: Any) -> None:
    idempotency = Idempotency()
    runner = idempotency.runner()
    apps = [Flask(name) for name in ("shop", "bank")]
    with pytest.raises(RuntimeError, match="name the app"):
        runner.run("k", note)
    idempotency.init_app(apps[0])
    assert runner.run("k", note)["calls"] == 1
    idempotency.init_app(apps[1])
    with pytest.raises(RuntimeError, match="name the app"):
        idempotency.run("k", note)
    with apps[1].app_context():
        assert idempotency.run("k", note)["calls"] == 2
    assert idempotency.runner(app=apps[0]).run("k", note)["calls"] == 1
    for app in apps:
        idempotency.close(app)


# --- Failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_the_same_call_runs_again_with_the_same_derived_keys(
    idempotency: Idempotency, error: type[BaseException]
) -> None:
    seen = []

    def flaky() -> int:
        seen.append(facts())
        if len(seen) < 3:
            raise error("oh")
        return len(seen)

    for _ in range(2):
        with pytest.raises(error, match="oh"):
            idempotency.run("k", flaky)
        with pytest.raises(KeyReused):
            idempotency.run("k", note)
    assert [idempotency.run("k", flaky) for _ in range(2)] == [3, 3]
    assert [(fact["key"], fact["attempt"]) for fact in seen] == [("k", 1), ("k", 2), ("k", 3)]
    assert len({fact["charge"] for fact in seen}) == 1


@pytest.mark.parametrize("result", [object(), {1, 2}, b"x", float("inf"), iter(())])
def test_a_result_that_is_not_json_is_an_error_and_the_call_has_failed(idempotency: Idempotency, result: Any) -> None:
    attempts = []

    def give() -> Any:
        attempts.append(current_idempotency.attempt)
        return result

    for _ in range(2):
        with pytest.raises(TypeError, match="the result cannot be written as JSON"):
            idempotency.run("k", give)
    assert attempts == [1, 2]


def test_a_result_over_the_limit_is_an_error(idempotency: Idempotency) -> None:
    runner = idempotency.runner(max_body=10)
    assert runner.run("small", lambda: "x" * 8) == "x" * 8
    with pytest.raises(ValueError, match=r"too large to be stored: 11 bytes, and max_body is 10"):
        runner.run("large", lambda: "x" * 9)


def test_a_function_can_ask_not_to_be_remembered(idempotency: Idempotency, runs: Runs) -> None:
    def nothing_to_do() -> int:
        current_idempotency.do_not_store()
        return runs()

    assert [idempotency.run("k", nothing_to_do) for _ in range(2)] == [1, 2]
    assert idempotency.run("k", note)["calls"] == 1, "the key is free"


# --- At once ------------------------------------------------------------------------------------------------------


def test_of_twenty_calls_at_once_one_runs(idempotency: Idempotency, runs: Runs, gate: Gate) -> None:
    def work() -> int:
        gate()
        return runs()

    def attempt(_: int) -> Any:
        try:
            return idempotency.run("k", work)
        except RequestInProgress as busy:
            return busy.retry_after

    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(attempt, 0)
        gate.await_view()
        others = list(pool.map(attempt, range(19)))
        gate.open()
        assert first.result(10) == 1
    assert others == 19 * [1], "seconds to wait"
    assert (idempotency.run("k", work), runs.count) == (1, 1)


def test_a_call_can_wait_for_the_result_of_the_one_that_runs(idempotency: Idempotency, runs: Runs, gate: Gate) -> None:
    def work() -> int:
        gate()
        return runs()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(idempotency.run, "k", work)
        gate.await_view()
        second = pool.submit(idempotency.runner(wait=10).run, "k", work)
        gate.open()
        assert (first.result(10), second.result(10)) == (1, 1)


def test_a_call_longer_than_its_lease_keeps_its_key(idempotency: Idempotency, gate: Gate) -> None:
    runner = idempotency.runner(lease=0.3, ttl=0.3)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(runner.run, "k", gate)
        gate.await_view()
        for _ in range(10):
            with pytest.raises(RequestInProgress):
                runner.run("k", gate)
            assert not threading.Event().wait(0.1)  # a second in all: three leases
        gate.open()
        assert slow.result(10) is None


def test_a_call_inside_itself_is_told_so(idempotency: Idempotency) -> None:
    def inner() -> None:
        idempotency.run("k", inner)

    with pytest.raises(RequestInProgress):
        idempotency.run("k", inner)


# --- current_idempotency ------------------------------------------------------------------------------------------


def test_the_function_knows_its_key_and_derives_others(idempotency: Idempotency) -> None:
    seen = [idempotency.run(key, facts) for key in ("a", "b")]
    assert [(fact["key"], fact["attempt"]) for fact in seen] == [("a", 1), ("b", 1)]
    assert all(re.fullmatch("[0-9a-f]{64}", fact["charge"]) for fact in seen)
    assert seen[0]["charge"] != seen[1]["charge"]
    assert idempotency.runner(scope="mails").run("a", facts)["charge"] != seen[0]["charge"]


def test_after_the_function_it_is_gone(idempotency: Idempotency) -> None:
    idempotency.run("k", facts)
    with pytest.raises(ZeroDivisionError):
        idempotency.run("z", lambda: 1 / 0)
    with pytest.raises(RuntimeError, match="or a function under idempotency"):
        facts()


def test_inside_of_a_view_it_is_the_functions_and_afterwards_the_views(make_app: Any, serve: Any) -> None:
    app = make_app()
    idempotency = app.extensions["idempotency"]

    def outer() -> list[Any]:
        before = facts()["key"]
        return [before, idempotency.run("inner", facts)["key"], facts()["key"]]

    @app.post("/")
    @idempotent
    def view() -> Any:
        return [facts()["key"], idempotency.run("outer", outer), facts()["key"], has_request_context()]

    assert serve(app).post(key="client").json() == ["client", ["outer", "inner", "outer"], "client", True]


def test_a_request_made_inside_of_the_function_has_its_own(make_app: Any) -> None:
    app = make_app()
    app.post("/guarded", endpoint="guarded")(idempotent(facts))
    app.post("/bare", endpoint="bare")(facts)

    def call() -> list[Any]:
        client = app.test_client()
        guarded = client.post("/guarded", headers={HEADER: "client"}).get_json()["key"]
        return [guarded, client.post("/bare").status_code, facts()["key"]]

    assert app.extensions["idempotency"].run("k", call) == ["client", 500, "k"]


def test_calls_in_threads_do_not_see_each_other(idempotency: Idempotency) -> None:
    meet = threading.Barrier(2, timeout=10)

    def work() -> Any:
        meet.wait()
        key = facts()["key"]
        meet.wait()
        return key

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda key: idempotency.run(key, work), "ab")) == ["a", "b"]


# --- Errors -------------------------------------------------------------------------------------------------------


def test_errors_say_what_they_are_without_a_request(idempotency: Idempotency) -> None:
    idempotency.run("k", note, 1)
    with pytest.raises(IdempotencyError) as caught:
        idempotency.run("k", note, 2)
    assert (caught.value.code, caught.value.problem_code, caught.value.retryable) == (422, "key-reused", False)
    assert "came before with another request" in str(caught.value)
    assert json.loads(caught.value.get_response().get_data())["code"] == "key-reused"


def test_inside_of_a_request_they_are_its_answer(make_app: Any, serve: Any) -> None:
    app = make_app()

    @app.post("/<argument>")
    def view(argument: str) -> Any:
        return current_app.extensions["idempotency"].run("k", note, argument)

    server = serve(app)
    assert server.post("/a").json()["calls"] == 1
    assert_problem(server.post("/b"), "key-reused")


def test_a_damaged_record_is_an_error_and_nothing_runs(idempotency: Idempotency, make_app: Any) -> None:
    idempotency.run("k", note)
    store = idempotency._state(None).store
    with signals.replayed.connected_to(lambda app, event: keys.append(event.key)):
        keys: list[str] = []
        idempotency.run("k", note)
    store.set(keys[0], b"\x01rubbish", 60_000)
    with pytest.raises(RecordUnreadable):
        idempotency.run("k", note)
    assert len(CALLS) == 1


def test_signals_tell_of_calls_as_of_requests(idempotency: Idempotency) -> None:
    heard = []

    def hear(app: Flask, event: Any) -> None:
        heard.append(event.outcome.value)

    with signals.claimed.connected_to(hear), signals.completed.connected_to(hear), signals.replayed.connected_to(hear):
        idempotency.run("k", note)
        idempotency.run("k", note)
    assert heard == ["claimed", "completed", "replayed"]


@pytest.mark.redis
def test_without_redis_the_policy_decides(bare_app: Callable[..., Flask], new_redis: Any) -> None:
    config = {**redis_config(new_redis()), "IDEMPOTENCY_STORE_TIMEOUT": 0.25}  # a server that was never started
    idempotency = Idempotency(bare_app(**config))
    with pytest.raises(StoreUnavailable) as caught:
        idempotency.runner(on_outage="reject").run("k", note)
    assert caught.value.retryable
    assert CALLS == []
    execute = idempotency.runner(on_outage="execute", scope="x")
    assert execute.run("k", facts)["key"] == "k"
    with pytest.raises(TypeError, match="the result"):
        execute.run("k2", object)
    local = idempotency.runner(scope="l")
    assert [local.run("k", note)["calls"] for _ in range(2)] == [1, 1]


# --- Processes ----------------------------------------------------------------------------------------------------


class Tasks:
    """Starts ``tests.web.task`` in processes that share a directory and a store."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._directory, self._config = directory, config
        self._processes: list[subprocess.Popen[str]] = []
        self.hold = directory / "hold"

    def start(self, **settings: Any) -> subprocess.Popen[str]:
        config = json.dumps({**self._config, **setting_names(settings)})
        command = [sys.executable, "-m", "tests.web.task", config, str(self._directory)]
        root = Path(__file__).parents[2]
        self._processes.append(subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True))
        return self._processes[-1]

    def run(self) -> str:
        return self.start().communicate(timeout=30)[0].strip()

    def lines(self, word: str) -> list[list[str]]:
        noted = self._directory / word
        return [line.split() for line in noted.read_text().splitlines()] if noted.exists() else []

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def tasks(tmp_path: Path, redis_server: Any) -> Any:
    tasks = Tasks(tmp_path, {**redis_config(redis_server), "IDEMPOTENCY_LEASE": 2})
    yield tasks
    tasks.close()


@pytest.mark.redis
def test_of_processes_at_once_one_runs_and_all_get_its_result(tasks: Tasks) -> None:
    tasks.hold.touch()
    started = [tasks.start(wait=20) for _ in range(4)]
    eventually(lambda: tasks.lines("began"), within=30)
    tasks.hold.unlink()
    said = {process.communicate(timeout=30)[0] for process in started}
    assert len(said) == 1, "every process prints the same result"
    assert (len(tasks.lines("began")), json.loads(said.pop())["attempt"]) == (1, 1)


@pytest.mark.redis
def test_when_the_process_is_killed_the_same_call_runs_again_and_derives_the_same(tasks: Tasks) -> None:
    tasks.hold.touch()
    victim = tasks.start()
    eventually(lambda: tasks.lines("began"), within=30)
    victim.kill()
    victim.wait()
    tasks.hold.unlink()

    def again() -> str | None:
        said = tasks.run()
        return None if said == "RequestInProgress" else said

    result = json.loads(eventually(again, within=60))
    assert result["attempt"] == 2
    assert json.loads(tasks.run()) == result
    began = tasks.lines("began")
    assert [attempt for _, attempt, _ in began] == ["1", "2"]
    assert len({charge for _, _, charge in began}) == 1
    assert len(tasks.lines("ended")) == 1


@pytest.mark.redis
def test_where_nobody_may_guess_a_killed_process_leaves_an_unknown_outcome(
    tasks: Tasks, bare_app: Callable[..., Flask], redis_server: Any, tmp_path: Path
) -> None:
    from .task import work

    tasks.hold.touch()
    victim = tasks.start()
    eventually(lambda: tasks.lines("began"), within=30)
    victim.kill()
    victim.wait()
    runner = Idempotency(bare_app("shop", **redis_config(redis_server))).runner(on_crash="refuse")
    named = functools.partial(work, str(tmp_path))
    named.func.__module__ = "__main__"  # as it is called in the process

    def refused() -> bool:
        with pytest.raises((OutcomeUnknown, RequestInProgress)) as caught:
            runner.run("k", named)
        return caught.type is OutcomeUnknown

    eventually(refused, within=30)


def test_a_step_that_must_not_be_repeated_says_where_to_read_about_it(make_app: Callable[..., Flask]) -> None:
    docs = "https://shop.example/docs/errors"
    idempotency = make_app(docs_url=docs).extensions["idempotency"]

    def send() -> None:
        raise ConnectionError("it may have been sent")

    def mail() -> Any:
        return current_idempotency.step("mail", send, at_most_once=True)

    with pytest.raises(ConnectionError):
        idempotency.run("k", mail)
    with pytest.raises(OutcomeUnknown) as told:
        idempotency.run("k", mail)
    assert told.value.docs_url == docs
