"""Every kind of view and of app: the same behaviour, and a clear word where the set-up is wrong."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, current_app, has_request_context, request, url_for
from flask.views import MethodView, View
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_idempotent import ConfigurationError, Idempotency, current_idempotency, idempotent

from .conftest import (
    HEADER,
    REPLAYED,
    Client,
    Runs,
    Server,
    StoreUnderTest,
    assert_original,
    assert_problem,
    assert_replay,
    once_ended,
)

Attach = Callable[[Flask, Runs], str]  # puts a guarded view on an app and returns its path

ATTACHED: dict[str, Attach] = {}


def attached(attach: Attach) -> Attach:
    ATTACHED[attach.__name__.replace("_", " ").strip()] = attach
    return attach


@attached
def _function(app: Flask, runs: Runs) -> str:
    @app.post("/orders")
    @idempotent
    def create() -> Any:
        return {"run": runs()}, 201

    return "/orders"


@attached
def _function_with_options(app: Flask, runs: Runs) -> str:
    @app.post("/orders")
    @idempotent(required=True, ttl=60)
    def create() -> Any:
        return {"run": runs()}, 201

    return "/orders"


@attached
def _function_with_arguments(app: Flask, runs: Runs) -> str:
    @app.post("/shops/<int:shop>/orders/<name>")
    @idempotent
    def create(shop: int, name: str, note: str = "none") -> Any:
        return {"run": runs(), "shop": shop, "name": name, "note": note}, 201

    return "/shops/7/orders/mug"


@attached
def _url_rule(app: Flask, runs: Runs) -> str:
    app.add_url_rule("/orders", "create", idempotent(lambda: ({"run": runs()}, 201)), methods=["POST"])
    return "/orders"


@attached
def _two_routes(app: Flask, runs: Runs) -> str:
    @app.post("/orders")
    @app.post("/bestellungen")
    @idempotent
    def create() -> Any:
        return {"run": runs()}, 201

    return "/bestellungen"


@attached
def _async_function(app: Flask, runs: Runs) -> str:
    @app.post("/orders")
    @idempotent
    async def create() -> Any:
        await asyncio.sleep(0.001)
        return {"run": runs(), "key": current_idempotency.key}, 201

    return "/orders"


@attached
def _async_function_with_arguments(app: Flask, runs: Runs) -> str:
    @app.post("/orders/<name>")
    @idempotent(required=True)
    async def create(name: str) -> Any:
        await asyncio.sleep(0)
        return Response(f"{name} {runs()} {request.path}", 201)

    return "/orders/mug"


@attached
def _method_view_with_decorators(app: Flask, runs: Runs) -> str:
    class Orders(MethodView):
        decorators = [idempotent]  # noqa: RUF012

        def get(self) -> str:
            return "list"

        def post(self) -> Any:
            return {"run": runs()}, 201

    app.add_url_rule("/orders", view_func=Orders.as_view("orders"))
    return "/orders"


@attached
def _method_view_with_a_guarded_method(app: Flask, runs: Runs) -> str:
    class Orders(MethodView):
        init_every_request = False

        @idempotent(required=True)
        def post(self, name: str) -> Any:
            return {"run": runs(), "self": type(self).__name__, "name": name}, 201

    app.add_url_rule("/orders/<name>", view_func=Orders.as_view("orders"))
    return "/orders/mug"


@attached
def _async_method_view(app: Flask, runs: Runs) -> str:
    class Orders(MethodView):
        decorators = [idempotent(required=True)]  # noqa: RUF012

        async def post(self) -> Any:
            await asyncio.sleep(0)
            return {"run": runs()}, 201

    app.add_url_rule("/orders", view_func=Orders.as_view("orders"))
    return "/orders"


@attached
def _plain_view_class(app: Flask, runs: Runs) -> str:
    class Orders(View):
        methods = ["POST"]  # noqa: RUF012
        decorators = [idempotent]  # noqa: RUF012

        def dispatch_request(self) -> Any:
            return {"run": runs()}, 201

    app.add_url_rule("/orders", view_func=Orders.as_view("orders"))
    return "/orders"


@attached
def _blueprint(app: Flask, runs: Runs) -> str:
    blueprint = Blueprint("shop", __name__, url_prefix="/shop")
    blueprint.post("/orders")(idempotent(lambda: ({"run": runs(), "url": url_for(request.endpoint)}, 201)))
    app.register_blueprint(blueprint)
    return "/shop/orders"


@attached
def _nested_blueprints(app: Flask, runs: Runs) -> str:
    parent, child = Blueprint("parent", __name__, url_prefix="/v1"), Blueprint("child", __name__, url_prefix="/shop")

    @child.post("/orders/<int:number>")
    @idempotent
    def create(number: int) -> Any:
        return {"run": runs(), "endpoint": request.endpoint, "number": number}, 201

    parent.register_blueprint(child)
    app.register_blueprint(parent, url_prefix="/api/v1")
    return "/api/v1/shop/orders/3"


@attached
def _another_decorator_above(app: Flask, runs: Runs) -> str:
    import functools

    def authenticated(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return view(*args, **kwargs)

        return inner

    @app.post("/orders")
    @authenticated
    @idempotent
    @authenticated
    def create() -> Any:
        return {"run": runs()}, 201

    return "/orders"


@pytest.mark.parametrize("attach", ATTACHED.values(), ids=ATTACHED.keys())
def test_every_kind_of_view_runs_once(
    store: StoreUnderTest, make_app: Any, serve: Callable[..., Server], runs: Runs, attach: Attach
) -> None:
    servers, path = [], ""
    for _ in range(store.workers):
        app = make_app()
        path = attach(app, runs)
        servers.append(serve(app))
    first = servers[0].post(path, key="k", json={"a": 1})
    assert_original(first)
    for server in servers:
        assert_replay(server.post(path, key="k", json={"a": 1}), first)
        assert_problem(server.post(path, key="k", json={"a": 2}), "key-reused")
    assert runs.count == 1


@pytest.mark.parametrize("ending", ["exception", "500", "401", "abort"])
def test_an_async_view_fails_and_refuses_like_any_other(
    workers: Callable[..., list[Server]], runs: Runs, ending: str
) -> None:
    from flask import abort

    async def view() -> Any:
        await asyncio.sleep(0)
        if runs() > 1:
            return {"attempt": current_idempotency.attempt}, 201
        if ending == "exception":
            raise LookupError
        return abort(404) if ending == "abort" else ({}, int(ending))

    servers = workers(lambda: view)
    first = servers[0].post(key="k")
    again = servers[-1].post(key="k")
    if ending == "abort":
        assert_replay(again, first)
    else:
        assert_original(again)
        assert again.json()["attempt"] == (1 if ending == "401" else 2)


def test_the_methods_of_a_view_class_that_do_not_change_anything_pass_through(
    make_app: Any, serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()
    path = ATTACHED["method view with decorators"](app, runs)
    server = serve(app)
    for method in ("GET", "HEAD", "OPTIONS"):
        for _ in range(2):
            answer = server.request(method, path, key="a, b")
            assert answer.status_code == 200
            assert REPLAYED not in answer.headers


def test_a_decorated_view_keeps_its_name_its_documentation_and_its_signature() -> None:
    def create_order(shop: int, *, note: str = "") -> dict[str, int]:
        """Makes an order."""
        return {}

    for guarded in (idempotent(create_order), idempotent(required=True)(create_order)):
        assert (guarded.__name__, guarded.__doc__) == ("create_order", "Makes an order.")
        assert guarded.__qualname__ == create_order.__qualname__
        assert inspect.signature(guarded) == inspect.signature(create_order)


def test_a_guarded_view_that_calls_another_one_runs_both_under_one_key(
    make_app: Any, serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()

    @app.post("/inner")
    @idempotent(required=True)
    def inner() -> dict[str, Any]:
        return {"inner": runs(), "key": current_idempotency.key}

    @app.post("/outer")
    @idempotent
    def outer() -> Any:
        return {**inner(), "outer": runs()}, 201

    server = serve(app)
    first = server.post("/outer", key="k")
    assert first.json() == {"inner": 1, "outer": 2, "key": "k"}
    assert_replay(server.post("/outer", key="k"), first)
    assert runs.count == 2


# --- Apps -----------------------------------------------------------------------------------------------------------


def test_an_app_factory_makes_independent_apps_with_one_extension(
    store: StoreUnderTest, bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    extension, blueprint = Idempotency(), Blueprint("orders", __name__)
    blueprint.post("/")(idempotent(lambda: ({"run": runs(), "app": current_app.name}, 201)))

    def create_app(name: str, **settings: Any) -> Flask:
        app = bare_app(name, **store.config, **settings)
        extension.init_app(app)
        app.register_blueprint(blueprint)
        return app

    shop = serve(create_app("shop"))
    bank = serve(create_app("bank", IDEMPOTENCY_REQUIRED=True, IDEMPOTENCY_REPLAY_HEADER="X-Again"))
    answers = {server.app.name: server.post(key="k") for server in (shop, bank)}
    assert {name: answer.json()["app"] for name, answer in answers.items()} == {"shop": "shop", "bank": "bank"}
    assert_replay(shop.post(key="k"), answers["shop"])
    again = bank.post(key="k")
    assert (again.json(), again.headers["X-Again"]) == (answers["bank"].json(), "true")
    assert_original(shop.post())
    assert_problem(bank.post(), "key-missing")
    assert runs.count == 3
    assert shop.app.extensions["idempotency"] is bank.app.extensions["idempotency"] is extension


def test_one_view_on_two_apps_follows_the_settings_of_each(
    bare_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    @idempotent(max_key_length=5)
    def view() -> Any:
        return {"run": runs()}, 201

    servers = []
    for docs_url in ("https://one.example/docs", "https://two.example/docs"):
        app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache", IDEMPOTENCY_DOCS_URL=docs_url)
        Idempotency(app)
        app.post("/")(view)
        servers.append((docs_url, serve(app)))
    for docs_url, server in servers:
        assert server.post(key="too-long").json()["type"] == f"{docs_url}#key-invalid"


def mounted(app: Flask, *places: str) -> DispatcherMiddleware:
    return DispatcherMiddleware(Flask("outside"), dict.fromkeys(places, app))


def test_an_app_under_two_mount_points_has_two_keys(make_app: Any, serve: Callable[..., Server], runs: Runs) -> None:
    app = make_app()
    app.post("/orders")(idempotent(lambda: ({"run": runs(), "root": request.root_path}, 201)))
    app.post("/a/orders", endpoint="other")(idempotent(lambda: ({"run": runs(), "root": request.root_path}, 201)))
    server = serve(mounted(app, "/a", "/b"))
    answers = {path: server.post(path, key="k") for path in ("/a/orders", "/b/orders", "/b/a/orders")}
    assert {path: answer.json()["root"] for path, answer in answers.items()} == {
        "/a/orders": "/a",
        "/b/orders": "/b",
        "/b/a/orders": "/b",
    }
    for path, answer in answers.items():
        assert_replay(server.post(path, key="k"), answer)
    assert runs.count == 3


def test_a_mount_point_that_a_proxy_names_counts_as_well(
    make_app: Any, serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()
    app.post("/orders")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(ProxyFix(app, x_prefix=1))
    for prefix in ("/one", "/two"):
        assert_original(server.post("/orders", key="k", headers={"X-Forwarded-Prefix": prefix}))
    assert runs.count == 2


def test_the_servers_of_one_app_share_its_keys(make_app: Any, serve: Callable[..., Server], runs: Runs) -> None:
    app = make_app()
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    one, two = serve(app), serve(app)
    first = one.post(key="k")
    assert_replay(two.post(key="k"), first)


# --- Mistakes that are reported -------------------------------------------------------------------------------------


def _above_the_route(app: Flask, runs: Runs) -> None:
    @idempotent
    @app.post("/orders")
    def create() -> Any:
        return {"run": runs()}, 201


def _above_the_route_with_options(app: Flask, runs: Runs) -> None:
    @idempotent(required=True)
    @app.post("/orders")
    def create() -> Any:
        return {"run": runs()}, 201


def _above_the_route_of_an_async_view(app: Flask, runs: Runs) -> None:
    @idempotent
    @app.post("/orders")
    async def create() -> Any:
        return {"run": runs()}, 201


def _above_the_route_of_a_blueprint(app: Flask, runs: Runs) -> None:
    blueprint = Blueprint("shop", __name__)

    @idempotent
    @blueprint.post("/orders")
    def create() -> Any:
        return {"run": runs()}, 201

    app.register_blueprint(blueprint)


def _above_the_route_of_a_nested_blueprint(app: Flask, runs: Runs) -> None:
    parent, child = Blueprint("parent", __name__), Blueprint("child", __name__)

    @idempotent
    @child.route("/orders", methods=["POST"])
    def create() -> Any:
        return {"run": runs()}, 201

    parent.register_blueprint(child)
    app.register_blueprint(parent)


WRONG_ORDER = [
    _above_the_route,
    _above_the_route_with_options,
    _above_the_route_of_an_async_view,
    _above_the_route_of_a_blueprint,
    _above_the_route_of_a_nested_blueprint,
]


@pytest.mark.parametrize("attach", WRONG_ORDER, ids=lambda attach: attach.__name__.strip("_").replace("_", " "))
def test_the_decorator_above_the_route_is_reported_and_not_ignored(
    make_app: Any, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, runs: Runs, attach: Any
) -> None:
    app = make_app()
    attach(app, runs)
    with caplog.at_level(logging.ERROR):
        assert serve(app).post("/orders", key="k").status_code == 500
    assert runs.count == 0
    assert "@idempotent stands above the route decorator" in caplog.text
    assert "below @app.post" in caplog.text
    app.testing = True
    with pytest.raises(ConfigurationError, match=r"@idempotent stands above"):
        app.test_client().post("/orders")


def test_the_report_names_the_wrong_view_and_leaves_the_right_ones_alone(
    make_app: Any, serve: Callable[..., Server], runs: Runs
) -> None:
    app = make_app()
    _above_the_route(app, runs)
    app.post("/right", endpoint="right")(idempotent(lambda: ({"run": runs()}, 201)))
    app.get("/plain", endpoint="plain")(lambda: "plain")
    server = serve(app)
    assert_original(server.post("/right", key="k"))
    assert server.request("GET", "/plain").text == "plain"
    assert server.request("GET", "/nowhere").status_code == 404
    app.testing = True
    with pytest.raises(ConfigurationError, match="'create'"):
        app.test_client().post("/orders")


def test_one_function_may_be_routed_with_the_guard_and_without_it(
    make_app: Any, serve: Callable[..., Server], runs: Runs
) -> None:
    """A route to the plain function is no sign of the wrong order when the guarded one has a route, too."""
    app = make_app()

    def create() -> Any:
        return {"run": runs()}, 201

    app.add_url_rule("/plain", "plain", create, methods=["POST"])
    app.add_url_rule("/guarded", "guarded", idempotent(create), methods=["POST"])
    server = serve(app)
    first = server.post("/guarded", key="k")
    assert_replay(server.post("/guarded", key="k"), first)
    assert_original(server.post("/plain", key="k"))
    assert_original(server.post("/plain", key="k"))
    assert runs.count == 3


@pytest.mark.parametrize("options", [{}, {"required": True}])
def test_a_view_decorated_twice_is_refused(options: dict[str, Any]) -> None:
    def create_order() -> str:
        return ""

    with pytest.raises(TypeError, match=r"create_order has @idempotent twice"):
        idempotent(**options)(idempotent(create_order))


@pytest.mark.parametrize("thing", ["/orders", 5, None, b"x", ["POST"]], ids=repr)
def test_the_decorator_on_something_that_is_no_view_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match="directly above a view function"):
        idempotent()(thing)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tll": 5}, "did you mean"),
        ({"key_prefix": "x"}, "key_prefix"),
        ({"required": "yes"}, "required"),
        ({"methods": ["GET"]}, "methods"),
        ({"wait": -1}, "wait"),
        ({"on_outage": "ignore"}, "on_outage"),
        ({"ttl": -1, "lease": 0, "max_body": -5}, r"ttl[\s\S]*lease[\s\S]*max_body|max_body"),
    ],
)
def test_a_wrong_option_is_reported_where_it_is_written(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        idempotent(**options)
    assert len(caught.value.mistakes) == len(options)


def test_without_the_extension_a_guarded_view_says_what_is_missing(
    bare_app: Callable[..., Flask], serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, runs: Runs
) -> None:
    app = bare_app()
    app.post("/")(idempotent(lambda: ({"run": runs()}, 201)))
    server = serve(app)
    for key in ("k", None):
        assert server.post(key=key).status_code == 500
    assert runs.count == 0
    assert "call Idempotency(app) or idempotency.init_app(app)" in caplog.text
    app.testing = True
    with pytest.raises(RuntimeError, match="Idempotency is not set up on the app 'shop'"):
        app.test_client().post("/", headers={HEADER: "k"})


def test_a_second_init_app_is_refused_with_the_remedy(bare_app: Callable[..., Flask]) -> None:
    app = bare_app(IDEMPOTENCY_CACHE_TYPE="SimpleCache")
    extension = Idempotency(app)
    for again in (lambda: extension.init_app(app), lambda: Idempotency(app), lambda: Idempotency().init_app(app)):
        with pytest.raises(RuntimeError, match=r"already set up on the app 'shop'; call init_app once"):
            again()


def test_wrong_settings_are_reported_all_at_once(bare_app: Callable[..., Flask]) -> None:
    app = bare_app(IDEMPOTENCY_TTL=-1, IDEMPOTENCY_WIAT=5, IDEMPOTENCY_METHODS=["GET"], IDEMPOTENCY_CACHE_TYPE="Null")
    with pytest.raises(ConfigurationError) as caught:
        Idempotency(app)
    for word in ("IDEMPOTENCY_TTL", "IDEMPOTENCY_WIAT", "IDEMPOTENCY_WAIT", "IDEMPOTENCY_METHODS", "CACHE_TYPE"):
        assert word in str(caught.value)
    assert "idempotency" not in app.extensions


def test_the_extension_starts_no_thread_and_opens_no_connection(
    bare_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import threading

    before = threading.active_count()
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connected"))
    Idempotency(bare_app(IDEMPOTENCY_CACHE_REDIS_URL="redis://127.0.0.1:1/0"))
    assert threading.active_count() == before
    assert not has_request_context()


# --- pytest-flask ---------------------------------------------------------------------------------------------------


class TestUnderPytestFlask:
    """The fixtures that users of pytest-flask have: ``client``, and ``live_server``, which forks."""

    @pytest.fixture
    def app(self, make_app: Callable[..., Flask]) -> Flask:
        app, runs = make_app(), Runs()
        app.post("/")(idempotent(lambda: ({"run": runs(), "attempt": current_idempotency.attempt}, 201)))
        return app

    def test_the_client_sees_one_run(self, client: Any) -> None:
        answers = [client.post("/", headers={HEADER: "k"}) for _ in range(3)]
        assert [answer.json for answer in answers] == [{"run": 1, "attempt": 1}] * 3
        assert [answer.headers.get(REPLAYED) for answer in answers] == [None, "true", "true"]
        assert client.post("/", headers={HEADER: "other"}).json["run"] == 2
        assert client.post("/?a=1", headers={HEADER: "k"}) == 422


class TestOnALiveServer:
    """pytest-flask's ``live_server`` forks: what the extension starts, it starts after the fork."""

    @pytest.fixture(scope="session")
    @classmethod
    def app(cls) -> Flask:
        app, runs = Flask("live"), Runs()
        app.config.update(IDEMPOTENCY_CACHE_TYPE="SimpleCache", IDEMPOTENCY_LEASE=0.3)
        Idempotency(app)

        @app.post("/")
        @idempotent
        def view() -> Any:
            time.sleep(float(request.args.get("seconds", 0)))
            return {"run": runs()}, 201

        client = app.test_client()
        assert client.post("/", headers={HEADER: "parent"}).status_code == 201  # the parent's heartbeat is running
        return app

    @pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
    def test_a_view_longer_than_its_lease_runs_once(self, live_server: Any) -> None:
        client = Client(live_server.port)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: once_ended(client, path="/?seconds=1"), range(4)))
        live_server.app.extensions["idempotency"].close(live_server.app)  # the parent's
        (first,) = (answer for answer in answers if REPLAYED not in answer.headers)
        assert_original(first)
        assert first.json() == {"run": 2}, "the first was the parent's"
        for answer in answers:
            assert answer is first or assert_replay(answer, first) is None
