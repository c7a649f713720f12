"""``flask idempotency``: what an operator sees and does, in processes of their own where it matters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import pytest
import requests
from click.testing import Result
from flask import Flask, Response
from flask.cli import AppGroup
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from flask_idempotent import Idempotency, IdempotencyCache, current_idempotency, idempotent, signals
from flask_idempotent.core.record import Head, State
from flask_idempotent.core.store import Claim, Terms
from flask_idempotent.state import app_state

from ..servers.standalone import RedisProcess
from .conftest import (
    REPLAYED,
    Client,
    Gate,
    Runs,
    Server,
    StoreUnderTest,
    Workers,
    assert_original,
    assert_problem,
    eventually,
    redis_config,
    setting_names,
)

ROOT = Path(__file__).parents[2]
LEASE = 0.8  # seconds, of the workers that are killed


def run(app: Flask, *args: str, **options: Any) -> Result:
    """Run a command in this process, where the records of SimpleCache are."""
    return app.test_cli_runner().invoke(args=["idempotency", *args], **options)


def rows(result: Result) -> dict[str, str]:
    """What ``show`` prints, by the words on the left; of several places the first."""
    assert result.exit_code == 0, result.output
    found: dict[str, str] = {}
    for line in result.output.splitlines():
        name, _, text = line.partition(" ")
        found.setdefault(name, text.strip())
    return found


def state_of(app: Flask, *args: str) -> str:
    return rows(run(app, "show", *args))["state"]


class Keys:
    """The storage keys of the requests to an app, as its log and its signals have them."""

    def __init__(self, app: Flask) -> None:
        self._seen: list[str] = []
        self._note = lambda _app, event: self._seen.append(event.key)
        signals.claimed.connect(self._note, sender=app)

    @property
    def last(self) -> str:
        return self._seen[-1]


@pytest.fixture
def orders(make_app: Callable[..., Flask], serve: Callable[..., Server]) -> Server:
    app = make_app()

    @app.post("/orders")
    @idempotent
    def create() -> Any:
        return {"order": "secret-tea"}, 201

    return serve(app)


# --- The group ------------------------------------------------------------------------------------------------------


def test_an_app_gets_the_commands_with_the_extension(make_app: Callable[..., Flask]) -> None:
    result = run(make_app(), "--help")
    assert result.exit_code == 0
    assert [name for name in ("doctor", "show", "resolve") if f"\n  {name} " in result.output] == [
        "doctor",
        "show",
        "resolve",
    ]


def test_commands_of_the_apps_own_stay(bare_app: Callable[..., Flask]) -> None:
    app = bare_app()
    own = AppGroup("idempotency")
    own.command("mine")(lambda: click.echo("mine"))
    app.cli.add_command(own)
    Idempotency(app)
    assert run(app, "mine").output == "mine\n"
    assert run(app, "doctor").exit_code == 2


# --- show -----------------------------------------------------------------------------------------------------------


def test_a_record_is_found_by_its_name_in_the_log_and_by_the_clients_key(orders: Server) -> None:
    keys = Keys(orders.app)
    assert_original(orders.post("/orders", key="8e03978e"))
    by_name = run(orders.app, "show", keys.last)
    for given in (["8e03978e"], ['"8e03978e"'], ['"8e03978e";a=1'], ["8e03978e", "--method", "post"]):
        by_key = run(orders.app, "show", *given, "--path", "/orders?page=2")
        assert by_key.output.splitlines()[:3] == by_name.output.splitlines()[:3]
    assert rows(by_name)["key"] == keys.last
    assert rows(by_name)["attempt"] == "1"
    assert rows(by_name)["state"] == "done: 201 CREATED, 1 header, a body of 23 bytes"
    assert rows(by_name)["kept"].startswith(("for another 600", "for another 599", "for another 598"))


def test_neither_body_nor_fingerprint_nor_token_is_shown(orders: Server) -> None:
    keys = Keys(orders.app)
    orders.post("/orders", key="client-key")
    found = app_state(orders.app).store.peek(keys.last)
    assert found is not None
    owner, fingerprint = found.record[4:20], found.record[20:52]
    output = run(orders.app, "show", keys.last).output
    secrets = [owner.hex(), fingerprint.hex(), repr(owner)[2:-1], repr(fingerprint)[2:-1], "secret-tea", "client-key"]
    assert not [secret for secret in secrets if secret in output]


def test_the_tiers_in_which_a_record_stands_are_named(store: StoreUnderTest, orders: Server) -> None:
    orders.post("/orders", key="k")
    places = [
        line.split(maxsplit=1)[1]
        for line in run(orders.app, "show", "k", "--path", "/orders").output.splitlines()
        if line.startswith("where")
    ]
    if store.redis is None:
        assert places == ["the memory of this process"]
    else:
        path = store.config["IDEMPOTENCY_SHARED_PATH"]
        assert places == [f"Redis 127.0.0.1:{store.redis.port}/0", f"this host, in {path}"]


def test_a_record_below_a_mount_point_is_found_by_the_whole_path(
    make_app: Callable[..., Flask], serve: Callable[..., Server]
) -> None:
    app = make_app()
    app.post("/or ders")(idempotent(lambda: "done"))
    server = serve(DispatcherMiddleware(Flask("front"), {"/api": app.wsgi_app}))
    assert_original(server.post("/api/or%20ders", key="k"), 200)
    assert state_of(app, "k", "--path", "/api/or%20ders").startswith("done")
    assert run(app, "show", "k", "--path", "/or%20ders").exit_code == 1


def test_where_hosts_count_the_host_must_be_given(serve: Callable[..., Server]) -> None:
    app = Flask("shop", host_matching=True, static_host="static")
    Idempotency(app)
    app.add_url_rule("/orders", "orders", idempotent(lambda: "done"), methods=["POST"], host="shop.example:80<port>")
    app.view_functions["orders"] = idempotent(lambda port: "done")
    server = serve(app)
    assert_original(server.post("/orders", key="k", headers={"Host": "shop.example:8080"}), 200)
    result = run(app, "show", "k", "--path", "/orders")
    assert (result.exit_code, "add --host" in result.output) == (2, True)
    assert run(app, "show", "k", "--path", "/orders", "--host", "other.example").exit_code == 1
    assert state_of(app, "k", "--path", "/orders", "--host", "shop.example:8080").startswith("done")
    app.extensions["idempotency"].close(app)


PRINCIPALS = [
    ("alice", ["alice"]),
    (17, ["17"]),
    ("17", ["17"]),
    ("007", ["007"]),
    (UUID(int=5), [str(UUID(int=5))]),
    (("acme", 17), ["acme", "17"]),
    (("acme", "17"), ["acme", "17"]),
]


@pytest.mark.parametrize(("principal", "given"), PRINCIPALS)
def test_a_principal_is_found_by_its_text_whatever_its_type(
    make_app: Callable[..., Flask], serve: Callable[..., Server], principal: Any, given: list[str]
) -> None:
    app = make_app()
    app.extensions["idempotency"].principal_loader(lambda: principal)
    app.post("/")(idempotent(lambda: "done"))
    assert_original(serve(app).post(key="k"), 200)
    named = [part for text in given for part in ("--principal", text)]
    assert state_of(app, "k", "--path", "/", *named).startswith("done")
    for others in ([], ["--principal", "bob"], [*named, "--principal", "more"]):
        assert run(app, "show", "k", "--path", "/", *others).exit_code == 1


def test_every_state_has_its_words(
    make_app: Callable[..., Flask], serve: Callable[..., Server], gate: Gate, runs: Runs
) -> None:
    app = make_app(compress_over=100, max_body=5000)
    bodies = {"/long": "x" * 3000, "/huge": "x" * 6000, "/none": ""}
    for path, body in bodies.items():
        app.add_url_rule(path, path, idempotent(lambda body=body: Response(body, 200)), methods=["POST"])
    app.add_url_rule("/fails", "fails", idempotent(lambda: ("", 503)), methods=["POST"])
    app.add_url_rule("/runs", "runs", idempotent(lambda: (gate(), "")[1]), methods=["POST"])
    server = serve(app)
    for path in (*bodies, "/fails"):
        server.post(path, key="k")
    waiting = threading.Thread(target=server.post, args=("/runs",), kwargs={"key": "k"})
    waiting.start()
    gate.await_view()
    done = "done: 200 OK, 1 header"
    assert state_of(app, "k", "--path", "/long") == f"{done}, a body of 3000 bytes, stored compressed"
    assert state_of(app, "k", "--path", "/huge") == f"{done}, the body was too large and is left out"
    assert state_of(app, "k", "--path", "/none") == f"{done}, a body of 0 bytes"
    assert state_of(app, "k", "--path", "/fails").endswith("s ago: the same request may run again")
    assert state_of(app, "k", "--path", "/runs").startswith(
        ("running: its lease lasts for another 29.", "running: its lease lasts for another 30.")
    )
    gate.open()
    waiting.join()


ODDITIES = [
    (b"\x01J{}", "a result of IdempotencyCache, 2 bytes of JSON"),
    (b"\x02" + bytes(80), "not known here: record version 2 is newer than 1"),
    (b"\x01P" + bytes(80), "no record, or a damaged one, of 82 bytes: "),
    (Head(State.DONE, 1, bytes(16), bytes(32), 9_000_000_000_000).pack() + b"?", "no record, or a damaged one"),
]


@pytest.mark.parametrize(("value", "words"), ODDITIES)
def test_what_is_no_record_of_a_request_is_named_and_not_shown(
    make_app: Callable[..., Flask], value: bytes, words: str
) -> None:
    app = make_app()
    prefix = app_state(app).settings.key_prefix
    key = f"{prefix}{{{'a' * 43}}}"
    app_state(app).store.set(key, value, 5000)
    shown = rows(run(app, "show", key))
    assert shown["state"].startswith(words)
    assert "attempt" not in shown


def test_a_result_of_the_cache_is_told_from_a_request(make_app: Callable[..., Flask]) -> None:
    app = make_app()
    store, names = app_state(app).store, []
    real, store.set = store.set, lambda key, value, ttl: (names.append(key), real(key, value, ttl))[1]  # type: ignore[method-assign]
    IdempotencyCache(app).set("report", {"rows": 12})
    assert state_of(app, names[0]) == "a result of IdempotencyCache, 11 bytes of JSON"


@pytest.mark.redis
def test_the_steps_of_a_request_are_counted(redis_server: RedisProcess, bare_app: Callable[..., Flask]) -> None:
    app = bare_app(**redis_config(redis_server), **setting_names({"local_tier": None, "on_outage": "reject"}))
    Idempotency(app)

    def fail() -> None:
        raise ArithmeticError

    @app.post("/")
    @idempotent
    def create() -> str:
        current_idempotency.step("charge", lambda: 1)
        current_idempotency.step("mail", fail)
        return "done"

    app.config["PROPAGATE_EXCEPTIONS"] = False
    keys = Keys(app)
    assert app.test_client().post("/", headers={"Idempotency-Key": "k"}).status_code == 500
    said = "1 done, 1 begun and not ended (one that is at_most_once: see resolve)"
    assert rows(run(app, "show", keys.last))["steps"] == said


def test_a_step_that_may_have_been_done_blocks_its_key_until_it_is_resolved(make_app: Callable[..., Flask]) -> None:
    app = make_app(docs_url="https://docs.example/idempotency")
    sent: list[str] = []

    def send(to: str) -> None:
        sent.append(to)
        if len(sent) == 1:
            raise ConnectionError("who knows whether it was sent")

    @app.post("/")
    @idempotent
    def create() -> str:
        current_idempotency.step("mail", send, "ada", at_most_once=True)
        return "done"

    app.config["PROPAGATE_EXCEPTIONS"] = False
    client = app.test_client()
    answers = [client.post("/", headers={"Idempotency-Key": "k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 409, 409]
    assert answers[1].get_json()["type"] == "https://docs.example/idempotency#outcome-unknown"
    assert "see resolve" in rows(run(app, "show", "k", "--path", "/"))["steps"]
    settled = run(app, "resolve", "k", "--path", "/", "--never-happened", input="y\n")
    assert "Let the step run again" in settled.output
    assert settled.output.endswith("The step may run again.\n")
    assert client.post("/", headers={"Idempotency-Key": "k"}).status_code == 200
    assert sent == ["ada", "ada"]


# --- What cannot be found -------------------------------------------------------------------------------------------

UNFOUND: list[tuple[list[str], int, str]] = [
    (["k"], 2, "say of which request it is, by --path"),
    (["k", "--principal", "alice"], 2, "--principal and --host go with --path"),
    (["k", "--path", "orders"], 2, "--path must begin with a slash"),
    (["a, b", "--path", "/orders"], 2, "this cannot be a client's key: it is neither a quoted string"),
    (["x" * 300, "--path", "/orders"], 2, "longer than 255 bytes"),
    (["other:{" + "a" * 43 + "}"], 2, "of another app"),
    (["k", "--path", "/orders"], 1, "Compare --method, --path, --principal and --host with the request"),
    (["k", "--path", "/orders"], 1, "the app's name is 'shop'"),
]


@pytest.mark.parametrize(("args", "status", "said"), UNFOUND)
@pytest.mark.parametrize("command", ["show", "resolve"])
def test_what_cannot_be_found_is_told_with_what_is_missing(
    make_app: Callable[..., Flask], command: str, args: list[str], status: int, said: str
) -> None:
    more = ["--never-happened", "--yes"] if command == "resolve" else []
    result = run(make_app(), command, *args, *more)
    assert (result.exit_code, said in result.output) == (status, True), result.output


def test_a_memory_that_nobody_else_sees_is_mentioned(store: StoreUnderTest, make_app: Callable[..., Flask]) -> None:
    result = run(make_app(), "show", "k", "--path", "/")
    assert ("no other process can see them" in result.output) is (store.redis is None)


@pytest.mark.redis
def test_in_an_outage_what_this_host_holds_is_shown_and_not_resolved(
    new_redis: Callable[..., RedisProcess], bare_app: Callable[..., Flask]
) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=new_redis().url)
    Idempotency(app)
    app.post("/")(idempotent(lambda: "done"))
    assert app.test_client().post("/", headers={"Idempotency-Key": "k"}).status_code == 200
    shown = run(app, "show", "k", "--path", "/")
    assert shown.exit_code == 1
    assert "where    this host, in " in shown.output
    assert "state    done: 200 OK" in shown.output
    assert "Redis is away" in shown.output
    resolved = run(app, "resolve", "--never-happened", "--yes", "k", "--path", "/")
    assert resolved.exit_code == 1
    assert "Redis is away" in resolved.output
    assert app.test_client().post("/", headers={"Idempotency-Key": "k"}).headers["Idempotent-Replayed"] == "true"


@pytest.mark.redis
@pytest.mark.parametrize("command", [["show"], ["resolve", "--never-happened", "--yes"]])
def test_without_its_redis_a_command_says_so_and_points_to_the_doctor(
    new_redis: Callable[..., RedisProcess], bare_app: Callable[..., Flask], command: list[str]
) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=new_redis().url)
    Idempotency(app)
    result = run(app, *command, "k", "--path", "/")
    assert result.exit_code == 1
    assert "Redis is away" in result.output
    assert "flask idempotency doctor" in result.output


# --- resolve --------------------------------------------------------------------------------------------------------


def given_up(client: Client, **options: Any) -> None:
    """Ask as long as the worker of the request ``k`` counts as alive; then nobody knows what it did."""

    def ended() -> requests.Response | None:
        answer = client.post(key="k", **options)
        return None if answer.json()["code"] == "request-in-progress" else answer

    assert_problem(eventually(ended), "outcome-unknown")


@pytest.fixture
def dead(make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs) -> Server:
    """Serves a view whose request ``k`` was claimed by a worker that is dead by now."""
    app = make_app(on_crash="refuse", ttl=300)

    @app.post("/")
    @idempotent
    def create() -> Any:
        return {"run": runs()}, 201

    server = serve(app)
    keys = Keys(app)
    state = app_state(app)
    server.post(key="k")  # for the fingerprint
    found = state.store.peek(keys.last)
    assert found is not None
    state.store.delete(keys.last)
    runs.count = 0
    claim = Claim(keys.last, b"dead worker......"[:16], found.record[20:52], Terms(20, 300_000, resume=False))
    state.store.claim(claim)
    given_up(server)
    return server


def test_the_answer_that_an_operator_gives_is_replayed(dead: Server, runs: Runs) -> None:
    assert state_of(dead.app, "k", "--path", "/").startswith("interrupted: its worker has not renewed the lease")
    args = ["--status", "201", "--body", '{"order": 7}', "--header", "Location: /orders/7", "--header", "X-A: b: c"]
    result = run(dead.app, "resolve", "k", "--path", "/", *args, "--yes")
    assert (result.exit_code, result.output) == (0, "From now on, the answer is replayed.\n")
    answer = dead.post(key="k")
    assert (answer.status_code, answer.headers[REPLAYED], answer.json()) == (201, "true", {"order": 7})
    assert (answer.headers["Location"], answer.headers["X-A"]) == ("/orders/7", "b: c")
    assert answer.headers["Content-Type"] == "application/json"
    assert_problem(dead.post(key="k", json={"other": "request"}), "key-reused")
    assert runs.count == 0
    assert rows(run(dead.app, "show", "k", "--path", "/"))["kept"] in ("for another 300 s", "for another 299 s")


def test_what_never_happened_runs_when_it_is_sent_again(dead: Server, runs: Runs) -> None:
    result = run(dead.app, "resolve", "k", "--path", "/", "--never-happened", "--yes")
    assert (result.exit_code, result.output) == (0, "The key is free again.\n")
    assert_original(dead.post(key="k", json={"other": "request"}))
    assert runs.count == 1


BODIES: list[tuple[list[str], bytes, str | None]] = [
    ([], b"", None),
    (["--body", ""], b"", None),
    (["--body", "[1]"], b"[1]", "application/json"),
    (["--body", "thanks"], b"thanks", "text/plain; charset=utf-8"),
    (
        ["--body", "<p>é", "--header", "content-type: text/html; charset=utf-8"],
        "<p>é".encode(),
        "text/html; charset=utf-8",
    ),
    (["--body-file", "FILE"], b"\x00\xff\x89PNG", "text/plain; charset=utf-8"),
    (["--body-file", "FILE", "--header", "Content-Type: image/png"], b"\x00\xff\x89PNG", "image/png"),
]


@pytest.mark.parametrize(("args", "body", "content_type"), BODIES)
def test_bodies_go_out_byte_for_byte_with_a_type_that_fits(
    dead: Server, tmp_path: Path, args: list[str], body: bytes, content_type: str | None
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"\x00\xff\x89PNG")
    args = [str(file) if each == "FILE" else each for each in args]
    assert run(dead.app, "resolve", "k", "--path", "/", "--status", "200", "--yes", *args).exit_code == 0
    answer = dead.post(key="k")
    assert (answer.status_code, answer.content, answer.headers.get("Content-Type")) == (200, body, content_type)


def test_the_answer_is_kept_for_as_long_as_the_operator_says(dead: Server) -> None:
    assert run(dead.app, "resolve", "k", "--path", "/", "--status", "204", "--ttl", "2", "--yes").exit_code == 0
    assert dead.post(key="k").status_code == 204
    assert_original(eventually(lambda: (answer := dead.post(key="k")).status_code == 201 and answer))


@pytest.mark.parametrize(("reply", "settled"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_an_operator_sees_the_record_and_is_asked(dead: Server, reply: str, settled: bool) -> None:
    result = run(dead.app, "resolve", "k", "--path", "/", "--status", "202", "--body", "ok", input=reply)
    assert "state    interrupted: its worker has not renewed the lease" in result.output
    assert "Answer every repetition with 202 ACCEPTED and 2 bytes, for 300 s?" in result.output
    assert result.exit_code == (0 if settled else 1)
    assert dead.post(key="k").status_code == (202 if settled else 409)


def test_before_a_key_is_freed_the_operator_is_asked(dead: Server, runs: Runs) -> None:
    result = run(dead.app, "resolve", "k", "--path", "/", "--never-happened", input="n\n")
    assert "Free the key, so that the next request under it runs?" in result.output
    assert_problem(dead.post(key="k"), "outcome-unknown")


MISUSED: list[tuple[list[str], str]] = [
    ([], "say either --never-happened, or --status"),
    (["--never-happened", "--status", "200"], "say either --never-happened, or --status"),
    (["--never-happened", "--body", "x"], "--never-happened goes without an answer"),
    (["--never-happened", "--header", "A: b"], "--never-happened goes without an answer"),
    (["--never-happened", "--ttl", "5"], "--never-happened goes without an answer"),
    (["--body", "x"], "say either"),
    (["--status", "99"], "99 is not in the range"),
    (["--status", "200", "--body", "x", "--body-file", __file__], "either --body or --body-file"),
    (["--status", "200", "--body-file", "/nowhere/at/all"], "No such file"),
    (["--status", "200", "--header", "no colon"], "--header is 'Name: value', unlike 'no colon'"),
    (["--status", "200", "--header", ": value"], "--header is 'Name: value'"),
    (["--status", "200", "--header", "A: b\r\nSet-Cookie: c"], "newline"),
    (["--status", "200", "--header", "Set-Cookie: a=b"], "never stored, but made anew for each answer: Set-Cookie"),
    (["--status", "200", "--header", "X-Name: ☃"], "cannot be stored"),
    (["--status", "200", "--ttl", "0"], "must be between"),
    (["--status", "200", "--ttl", "nan"], "must be a number of seconds"),
]


@pytest.mark.parametrize(("args", "said"), MISUSED)
def test_what_makes_no_sense_is_refused_and_changes_nothing(dead: Server, args: list[str], said: str) -> None:
    result = run(dead.app, "resolve", "k", "--path", "/", "--yes", *args)
    assert (result.exit_code, said in result.output) == (2, True), result.output
    assert_problem(dead.post(key="k"), "outcome-unknown")


@pytest.mark.parametrize("how", [["--never-happened"], ["--status", "200"]])
def test_a_request_that_is_running_or_ended_is_not_resolved(
    make_app: Callable[..., Flask], serve: Callable[..., Server], gate: Gate, how: list[str]
) -> None:
    app = make_app(on_crash="refuse")
    app.add_url_rule("/runs", "runs", idempotent(lambda: (gate(), "mine")[1]), methods=["POST"])
    app.add_url_rule("/fails", "fails", idempotent(lambda: ("", 500)), methods=["POST"])
    server = serve(app)
    server.post("/fails", key="k")
    waiting = threading.Thread(target=server.post, args=("/runs",), kwargs={"key": "k"})
    waiting.start()
    gate.await_view()
    for path, why in (("/runs", "the request is running"), ("/fails", "the request has failed; it runs again")):
        result = run(app, "resolve", "k", "--path", path, "--yes", *how)
        assert (result.exit_code, why in result.output) == (1, True)
    gate.open()
    waiting.join()
    result = run(app, "resolve", "k", "--path", "/runs", "--yes", *how)
    assert (result.exit_code, "the request is done, and its answer is replayed" in result.output) == (1, True)
    assert server.post("/runs", key="k").text == "mine"


@pytest.mark.redis
def test_what_this_host_has_and_redis_has_missed_is_not_resolved(
    redis_server: RedisProcess, bare_app: Callable[..., Flask], tmp_path: Path
) -> None:
    app = bare_app(**{**redis_config(redis_server), "IDEMPOTENCY_SHARED_PATH": str(tmp_path / "records.sqlite")})
    Idempotency(app)
    app.post("/")(idempotent(lambda: "done"))
    keys = Keys(app)
    assert app.test_client().post("/", headers={"Idempotency-Key": "k"}).text == "done"
    with redis_server.client() as client:
        record = client.get(keys.last)
        lapsed = Head(State.PENDING, 1, record[4:20], record[20:52], 1_000_000_000_000).pack()
        client.set(keys.last, lapsed, px=60_000)
        for how in (["--never-happened"], ["--status", "200"]):
            result = run(app, "resolve", keys.last, "--yes", *how)
            assert (result.exit_code, "its answer is replayed" in result.output) == (1, True)
        assert client.get(keys.last) == lapsed


# --- End to end: a worker is killed, and an operator decides ----------------------------------------------------------


def flask(config: dict[str, Any], *args: str) -> subprocess.CompletedProcess[str]:
    """``flask --app … idempotency …`` of the app that :mod:`tests.web.worker` serves."""
    app = f"tests.web.worker:create_app({config!r}, 'nowhere')"
    command = [sys.executable, "-m", "flask", "--app", app, "idempotency", *args]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60)


@pytest.fixture(params=["shared", "memory", None], ids=lambda tier: f"{tier}-before-redis")
def crashed(
    request: pytest.FixtureRequest, redis_server: RedisProcess, processes: Workers, tmp_path: Path
) -> Iterator[tuple[dict[str, Any], Client]]:
    """The settings of two workers of which one was killed in the middle of the request ``k``, and the other one."""
    tier = {"local_tier": request.param, "on_outage": "local" if request.param else "reject"}
    config = {**redis_config(redis_server), **setting_names({"lease": LEASE, "on_crash": "refuse", **tier})}
    config["IDEMPOTENCY_SHARED_PATH"] = str(tmp_path / "records.sqlite")
    processes.hold.touch()
    first, second = processes.start(config, 2)
    killer = threading.Thread(target=lambda: (eventually(lambda: processes.lines("began")), first.kill()))
    killer.start()
    with pytest.raises(requests.ConnectionError):
        first.post(key="k", json={"pay": 5})
    killer.join()
    processes.hold.unlink()
    given_up(second, json={"pay": 5})
    yield config, second
    assert len(processes.lines("ended")) <= 1


def test_a_killed_workers_request_is_settled_as_done(
    crashed: tuple[dict[str, Any], Client], processes: Workers
) -> None:
    config, worker = crashed
    shown = flask(config, "show", "k", "--path", "/")
    assert (shown.returncode, "state    interrupted: its worker" in shown.stdout) == (0, True), shown.stderr
    args = ["--status", "201", "--body", '{"order": 7}', "--header", "Location: /orders/7", "--ttl", "60", "--yes"]
    done = flask(config, "resolve", "k", "--path", "/", *args)
    assert done.returncode == 0, done.stderr
    for _ in range(2):
        answer = worker.post(key="k", json={"pay": 5})
        assert (answer.status_code, answer.headers[REPLAYED], answer.json()) == (201, "true", {"order": 7})
        assert answer.headers["Location"] == "/orders/7"
    assert_problem(worker.post(key="k", json={"pay": 6}), "key-reused")
    assert processes.lines("ended") == []
    again = flask(config, "resolve", "k", "--path", "/", *args)
    assert (again.returncode, "nothing to resolve" in again.stderr) == (1, True)


def test_a_killed_workers_request_is_settled_as_never_happened(
    crashed: tuple[dict[str, Any], Client], processes: Workers
) -> None:
    config, worker = crashed
    done = flask(config, "resolve", "k", "--path", "/", "--never-happened", "--yes")
    assert done.returncode == 0, done.stderr
    answer = worker.post(key="k", json={"pay": 5})
    assert_original(answer)
    assert answer.json()["attempt"] == 1
    assert worker.post(key="k", json={"pay": 5}).headers[REPLAYED] == "true"
    assert len(processes.lines("ended")) == 1


# --- doctor ---------------------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_the_exit_status_tells_scripts_how_bad_it_is(new_redis: Callable[..., RedisProcess]) -> None:
    server = new_redis(persistent=True).start()
    config = redis_config(server)
    well = flask(config, "doctor")
    assert (well.returncode, well.stdout.splitlines()[-1], well.stderr) == (0, "All is well.", "")
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    worse = flask(config, "doctor")
    assert (worse.returncode, worse.stdout.splitlines()[-1], worse.stderr) == (1, "1 warning", "")
    assert "warning  eviction     Redis evicts records (allkeys-lru); set maxmemory-policy noeviction\n" in worse.stdout
    server.stop()
    worst = flask(config, "doctor")
    assert (worst.returncode, worst.stdout.splitlines()[-1]) == (2, "1 failure")


@pytest.mark.redis
def test_scripts_get_one_json_object(new_redis: Callable[..., RedisProcess]) -> None:
    server = new_redis().start()
    done = flask(redis_config(server), "doctor", "--json")
    report = json.loads(done.stdout)
    assert (report["level"], done.returncode) == ("warning", 1)
    assert all(set(finding) == {"check", "level", "text"} for finding in report["findings"])
    assert {"connection": "ok", "persistence": "warning", "trial": "ok"}.items() <= {
        finding["check"]: finding["level"] for finding in report["findings"]
    }.items()


@pytest.mark.parametrize(("count", "status", "level"), [("1", 0, "note"), ("4", 1, "warning")])
def test_memory_alone_is_a_warning_where_several_workers_are_in_sight(
    make_app: Callable[..., Flask], store: StoreUnderTest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    count: str, status: int, level: str,
) -> None:  # fmt: skip
    if store.redis is not None:
        status, level = 1, ""  # its Redis keeps nothing, and its workers see the same records
    monkeypatch.setenv("WEB_CONCURRENCY", count)
    monkeypatch.chdir(tmp_path)
    result = run(make_app(), "doctor")
    assert result.exit_code == status
    assert (f"{level:8} workers" in result.output) is (store.redis is None)
    assert ("WEB_CONCURRENCY is 4, and each worker sees its own records alone" in result.output) is (
        store.redis is None and count == "4"
    )


def test_the_doctor_leaves_the_app_at_work(dead: Server) -> None:
    """In the same process, as in a test of the host's: nothing that the app needs is taken away."""
    run(dead.app, "doctor")
    assert_problem(dead.post(key="k"), "outcome-unknown")
    assert_original(dead.post(key="new"))
