"""The scope: within what a key is unique, and that nobody gets an answer that was another's."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, request
from flask.typing import ResponseReturnValue

from flask_idempotent import Idempotency, idempotent

from .conftest import (
    HEADER,
    REPLAYED,
    Runs,
    Server,
    StoreUnderTest,
    assert_original,
    assert_problem,
    assert_replay,
    setting_names,
)

ALICE, BOB = "Bearer alice-secret", "Bearer bob-secret"
BASIC_ALICE, BASIC_ALICE_GUESSED = "Basic YWxpY2U6cmlnaHQ=", "Basic YWxpY2U6d3Jvbmc="  # alice:right, alice:wrong


@pytest.fixture
def app_of_many_routes(make_app: Callable[..., Flask], runs: Runs) -> Flask:
    app = make_app()

    @app.route("/<path:place>", methods=["POST", "PATCH"])
    @app.route("/", methods=["POST", "PATCH"], defaults={"place": ""})
    @idempotent
    def view(place: str) -> ResponseReturnValue:
        return {"run": runs(), "path": request.path, "method": request.method, "caller": request.authorization}, 201

    return app


def app_with_loader(make_app: Callable[..., Flask], runs: Runs, load: Callable[[], Any]) -> Flask:
    app = make_app()
    extension: Idempotency = app.extensions["idempotency"]
    extension.principal_loader(load)

    @app.post("/")
    @idempotent
    def view() -> ResponseReturnValue:
        return {"run": runs(), "caller": request.headers.get("X-User")}, 201

    return app


# --- Routes -------------------------------------------------------------------------------------------------------

OTHER_REQUESTS = [
    (("POST", "/a", "k"), ("POST", "/b", "k")),
    (("POST", "/a", "k"), ("PATCH", "/a", "k")),
    (("POST", "/orders/1", "k"), ("POST", "/orders/2", "k")),
    (("POST", "/a", "k"), ("POST", "/a/", "k")),
    (("POST", "/a", "k"), ("POST", "/A", "k")),
    (("POST", "/a/b", "k"), ("POST", "/b", "k/a")),
    (("POST", "/b", "k:/a"), ("POST", "/a:/b", "k")),
    (("POST", "/1", "1k"), ("POST", "/11", "k")),
    (("POST", "/a%2Fb", "k"), ("POST", "/a%252Fb", "k")),
    (("POST", "/a%3A1", "k"), ("POST", "/a", "1:k")),
    (("POST", "/a%00b", "k"), ("POST", "/a", "b:k")),
]


@pytest.mark.parametrize(("one", "other"), OTHER_REQUESTS)
def test_one_key_on_another_path_or_method_is_another_key(
    app_of_many_routes: Flask, serve: Callable[..., Server], runs: Runs, one: Any, other: Any
) -> None:
    server = serve(app_of_many_routes)
    answers = []
    for method, path, key in (one, other):
        answers.append(server.request(method, path, key=key))
        assert_original(answers[-1])
    for (method, path, key), answer in zip((one, other), answers, strict=True):
        assert_replay(server.request(method, path, key=key), answer)
    assert runs.count == 2


def test_the_key_is_shared_by_spellings_of_one_path(app_of_many_routes: Flask, serve: Any, runs: Runs) -> None:
    server = serve(app_of_many_routes)
    answer = server.post("/caf%C3%A9", key="k")
    assert_replay(server.post("/%63af%c3%a9", key="k"), answer)
    assert runs.count == 1


def test_hosts_are_apart_where_the_app_routes_by_host(make_app: Callable[..., Flask], serve: Any, runs: Runs) -> None:
    app = make_app()
    app.url_map.host_matching = True
    for host in ("one.test", "two.test"):
        app.post("/", endpoint=host, host=host)(idempotent(lambda: {"run": runs(), "host": request.host}))
    server = serve(app)
    first, second = (server.post(key="k", headers={"Host": host}) for host in ("one.test", "two.test"))
    assert (first.json()["host"], second.json()["host"]) == ("one.test", "two.test")
    assert_replay(server.post(key="k", headers={"Host": "one.test"}), first)
    assert runs.count == 2


def test_two_apps_on_one_store_do_not_share_keys(
    store: StoreUnderTest, make_app: Callable[..., Flask], serve: Any, runs: Runs
) -> None:
    servers = []
    for name in ("shop", "bank"):
        app = make_app(name)
        app.post("/")(idempotent(lambda: {"run": runs()}))
        servers.append(serve(app))
    for server in servers:
        assert_original(server.post(key="k"), 200)
    assert runs.count == 2


@pytest.mark.redis
def test_neither_keys_nor_callers_nor_paths_can_be_read_in_the_store(
    redis_server: Any, bare_app: Callable[..., Flask], serve: Any
) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_REDIS_URL=redis_server.url)
    Idempotency(app).principal_loader(lambda: request.headers["X-User"])
    app.post("/secret-path")(idempotent(lambda: ({}, 201)))
    server = serve(app)
    server.post(
        "/secret-path?secret-query=1",
        key="secret-key",
        headers={"X-User": "secret-user", "Authorization": "Bearer secret-token"},
        data="secret-body",
    )
    with redis_server.client() as client:
        names = client.keys("*")
        stored = names + [client.get(name) for name in names]
    assert len(names) == 1
    assert names[0].startswith(b"idempotency:{")
    assert not [raw for raw in stored if b"secret" in raw]


# --- Callers ------------------------------------------------------------------------------------------------------

PRINCIPALS: list[tuple[Any, Any]] = [
    ("alice", "bob"),
    ("alice", "Alice"),
    (1, 2),
    (1, "1"),
    (b"1", "1"),
    (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    (("a", "b"), ("ab",)),
    (("a", "bc"), ("ab", "c")),
    (("tenant-1", 7), ("tenant-2", 7)),
    ((("a",), "b"), ("a", ("b",))),
    ("", "alice"),
    (0, ""),
    ((), ""),
]


@pytest.mark.parametrize(("one", "other"), PRINCIPALS, ids=repr)
def test_one_key_of_two_principals_is_two_keys(make_app: Any, serve: Any, runs: Runs, one: Any, other: Any) -> None:
    callers = {"one": one, "other": other}
    server = serve(app_with_loader(make_app, runs, lambda: callers[request.headers["X-User"]]))
    answers = {}
    for name in callers:
        answers[name] = server.post(key="k", headers={"X-User": name}, json={"payload": name})
        assert_original(answers[name])
    for name, answer in answers.items():
        assert_replay(server.post(key="k", headers={"X-User": name}, json={"payload": name}), answer)
    assert runs.count == 2


def test_a_principal_keeps_the_key_when_the_token_rotates(make_app: Any, serve: Any, runs: Runs) -> None:
    server = serve(app_with_loader(make_app, runs, lambda: request.headers["X-User"]))
    answer = server.post(key="k", headers={"X-User": "alice", "Authorization": "Bearer old"})
    assert_replay(server.post(key="k", headers={"X-User": "alice", "Authorization": "Bearer new"}), answer)
    assert runs.count == 1


@pytest.mark.parametrize("principal", [1.5, True, {"id": 1}, ["a"], ("a", None, 1.5), object()], ids=repr)
def test_a_principal_of_another_type_is_an_error_and_not_a_guess(
    make_app: Any, serve: Any, runs: Runs, principal: Any
) -> None:
    server = serve(app_with_loader(make_app, runs, lambda: principal))
    assert server.post(key="k").status_code == 500
    assert runs.count == 0


def test_a_loader_that_fails_stops_the_request(make_app: Any, serve: Any, runs: Runs) -> None:
    def load() -> str:
        raise LookupError

    server = serve(app_with_loader(make_app, runs, load))
    assert server.post(key="k").status_code == 500
    assert runs.count == 0


def test_a_loader_belongs_to_every_app_of_its_extension(
    store: StoreUnderTest, bare_app: Callable[..., Flask], serve: Any, runs: Runs
) -> None:
    extension = Idempotency()

    @extension.principal_loader
    def load() -> str:
        return request.headers["X-User"]

    for name in ("shop", "bank"):
        app = bare_app(name, **store.config)
        extension.init_app(app)
        app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
        server = serve(app)
        for user in ("alice", "bob"):
            assert_original(server.post(key="k", headers={"X-User": user}))
    assert runs.count == 4


# --- Without a principal ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loader", ["no loader", "the loader returns None"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ALICE, BOB),
        (ALICE, None),
        (None, BOB),
        (BASIC_ALICE, BASIC_ALICE_GUESSED),
        (BASIC_ALICE, BASIC_ALICE.replace("Basic", "Bearer")),
        ("Bearer \xe9", "Bearer \xea"),
    ],
)
def test_without_a_principal_another_authorization_under_one_key_gets_422(
    make_app: Any, serve: Any, runs: Runs, loader: str, one: str | None, other: str | None
) -> None:
    app = make_app()
    if loader != "no loader":
        app.extensions["idempotency"].principal_loader(lambda: None)
    app.post("/")(idempotent(lambda: ({"run": runs(), "secret": "of the first"}, 201)))
    server = serve(app)

    def send(credentials: str | None) -> Any:
        return server.raw(f"{HEADER}: k", *([] if credentials is None else [f"Authorization: {credentials}"]))

    answer = send(one)
    assert_original(answer)
    refused = send(other)
    assert_problem(refused, "key-reused")
    assert "of the first" not in refused.text
    assert_replay(send(one), answer)
    assert runs.count == 1


@pytest.mark.parametrize("fingerprint", [None, lambda request: "the same"], ids=["nothing counts", "told"])
def test_another_authorization_gets_422_whatever_the_route_takes_for_the_content(
    guarded: Callable[..., Server], runs: Runs, fingerprint: Any
) -> None:
    server = guarded(lambda: ({"run": runs()}, 201), fingerprint=fingerprint)
    answer = server.post(key="k", headers={"Authorization": ALICE}, json={"a": 1})
    assert_problem(server.post(key="k", headers={"Authorization": BOB}, json={"a": 1}), "key-reused")
    assert_replay(server.post(key="k", headers={"Authorization": ALICE}, json={"a": 2}), answer)
    assert runs.count == 1


def test_a_principal_that_is_known_in_part_is_not_taken_for_the_caller(make_app: Any, serve: Any, runs: Runs) -> None:
    """A tenant without its user is shared by all of the tenant's users."""
    server = serve(app_with_loader(make_app, runs, lambda: ("tenant-1", request.headers.get("X-User"))))
    answer = server.post(key="k", headers={"Authorization": ALICE})
    assert_original(answer)
    assert_problem(server.post(key="k", headers={"Authorization": BOB}), "key-reused")
    assert_replay(server.post(key="k", headers={"Authorization": ALICE}), answer)
    assert_original(server.post(key="k", headers={"Authorization": BOB, "X-User": "bob"}))
    assert runs.count == 2


def test_a_basic_user_name_is_not_taken_for_the_caller(make_app: Any, serve: Any, runs: Runs) -> None:
    """Whoever only claims to be Alice must not get an answer under her key, nor block it for her."""
    app = make_app()

    @app.post("/")
    @idempotent
    def view() -> ResponseReturnValue:
        if request.headers["Authorization"] != BASIC_ALICE:
            return {"error": "who are you?"}, 401
        return {"run": runs()}, 201

    server = serve(app)
    assert server.post(key="k", headers={"Authorization": BASIC_ALICE_GUESSED}).status_code == 401
    answer = server.post(key="k", headers={"Authorization": BASIC_ALICE})
    assert_original(answer)
    assert_problem(server.post(key="k", headers={"Authorization": BASIC_ALICE_GUESSED}), "key-reused")
    assert_replay(server.post(key="k", headers={"Authorization": BASIC_ALICE}), answer)
    assert runs.count == 1


# --- Flask-Login --------------------------------------------------------------------------------------------------


@pytest.fixture
def app_with_login(make_app: Callable[..., Flask], runs: Runs) -> Flask:
    flask_login = pytest.importorskip("flask_login")
    app = make_app()
    manager = flask_login.LoginManager(app)

    class User(flask_login.UserMixin):  # type: ignore[misc, name-defined]
        def __init__(self, id: str) -> None:
            self.id = id

    manager.user_loader(User)
    manager.request_loader(lambda request: User(request.headers["X-User"]) if "X-User" in request.headers else None)

    @app.post("/login/<name>")
    def login(name: str) -> str:
        flask_login.login_user(User(name))
        return name

    @app.post("/")
    @idempotent
    def view() -> ResponseReturnValue:
        return {"run": runs(), "user": flask_login.current_user.get_id()}, 201

    return app


def test_the_user_of_flask_login_is_the_caller(app_with_login: Flask, serve: Any, runs: Runs) -> None:
    server = serve(app_with_login)
    answers = {}
    for name in ("alice", "bob"):
        answers[name] = server.post(key="k", headers={"X-User": name, "Authorization": "Bearer one"})
        assert_original(answers[name])
        assert answers[name].json()["user"] == name
    for name, answer in answers.items():
        assert_replay(server.post(key="k", headers={"X-User": name, "Authorization": "Bearer two"}), answer)
    assert runs.count == 2


def test_the_user_of_a_session_is_the_caller(app_with_login: Flask, serve: Any, runs: Runs) -> None:
    server = serve(app_with_login)
    for name in ("alice", "bob"):
        cookies = server.post(f"/login/{name}").cookies
        answers = [server.post(key="k", cookies=cookies) for _ in range(2)]
        assert_original(answers[0])
        assert_replay(answers[1], answers[0])
        assert answers[0].json()["user"] == name
    assert runs.count == 2


def test_an_anonymous_user_of_flask_login_is_nobody(app_with_login: Flask, serve: Any, runs: Runs) -> None:
    server = serve(app_with_login)
    answer = server.post(key="k", headers={"Authorization": ALICE})
    assert_original(answer)
    assert_problem(server.post(key="k", headers={"Authorization": BOB}), "key-reused")
    assert_original(server.post(key="k", headers={"X-User": "alice"}))
    assert runs.count == 2


def test_a_loader_comes_before_flask_login(app_with_login: Flask, serve: Any, runs: Runs) -> None:
    app_with_login.extensions["idempotency"].principal_loader(lambda: request.headers["X-Tenant"])
    server = serve(app_with_login)
    answer = server.post(key="k", headers={"X-User": "alice", "X-Tenant": "t-1"})
    again = server.post(key="k", headers={"X-User": "bob", "X-Tenant": "t-1"})
    assert (again.json(), again.headers.get(REPLAYED)) == (answer.json(), "true")  # Flask adds a Vary by the session
    assert_original(server.post(key="k", headers={"X-User": "alice", "X-Tenant": "t-2"}))
    assert runs.count == 2


def test_an_app_without_a_login_manager_does_not_mind_that_flask_login_is_installed(
    guarded: Callable[..., Server], runs: Runs
) -> None:
    pytest.importorskip("flask_login")
    assert "flask_login" in sys.modules
    answer = guarded(lambda: ({"run": runs()}, 201)).post(key="k")
    assert_original(answer)


@pytest.mark.parametrize(
    ("loader", "word"), [(True, "principal_loader"), (False, "Authorization")], ids=["loader", "none"]
)
def test_the_start_says_in_the_log_how_keys_are_scoped(
    bare_app: Any, serve: Any, caplog: pytest.LogCaptureFixture, loader: bool, word: str
) -> None:
    """DESIGN.md, promise 6: an app that knows its users by a cookie alone must set a loader; the log says so."""
    app = bare_app(**setting_names({"cache_type": "SimpleCache"}))
    extension = Idempotency()
    if loader:
        extension.principal_loader(lambda: "alice")
    app.post("/")(idempotent(lambda: ""))
    with caplog.at_level("INFO", logger="flask_idempotent"):
        extension.init_app(app)
        answer = serve(app).post(key="k")  # at init_app, or at the first request at the latest: a loader may come later
    assert REPLAYED not in answer.headers
    assert [record for record in caplog.records if word in record.getMessage()], caplog.text
