"""``current_idempotency``: what a view knows of its own protection, and the keys that it derives for others."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Response, current_app, g, request, stream_with_context

from flask_idempotent import current_idempotency, idempotent

from .conftest import HEADER, REPLAYED, Runs, Server, assert_original, assert_replay


def telling(runs: Runs, status: Callable[[int], int] = lambda run: 201) -> Callable[..., Any]:
    def view(**kwargs: Any) -> Any:
        run = runs()
        facts = {
            "run": run,
            "key": current_idempotency.key,
            "attempt": current_idempotency.attempt,
            "charge": current_idempotency.derive("charge"),
            "mail": current_idempotency.derive("mail"),
        }
        return facts, status(run)

    return view


@pytest.fixture
def shop(make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs) -> Server:
    """Two routes, the second of which fails at its first two attempts; the principal is who X-User says."""
    app = make_app()
    app.extensions["idempotency"].principal_loader(lambda: request.headers.get("X-User"))
    app.route("/orders", methods=["POST", "PATCH"], endpoint="orders")(idempotent(telling(runs)))
    app.post("/other", endpoint="other")(idempotent(telling(runs)))
    app.post("/flaky", endpoint="flaky")(idempotent(telling(runs, lambda run: 500 if run < 3 else 201)))
    return serve(app)


@pytest.mark.parametrize(
    ("line", "key"), [("k-1", "k-1"), ('"k-1";a=1', "k-1"), (r'"a \"b\" \\c"', r'a "b" \c'), ("a:b/c", "a:b/c")]
)
def test_the_key_is_the_clients_own(shop: Server, line: str, key: str) -> None:
    assert shop.raw(f"{HEADER}: {line}", path="/orders").json()["key"] == key


def test_without_a_key_there_is_none_and_derived_keys_are_new_each_time(shop: Server) -> None:
    facts = [shop.post("/orders").json() for _ in range(2)]
    assert [(fact["key"], fact["attempt"]) for fact in facts] == [(None, 1), (None, 1)]
    assert len({fact[purpose] for fact in facts for purpose in ("charge", "mail")}) == 4


def test_the_attempt_is_counted_over_failures(shop: Server) -> None:
    facts = [shop.post("/flaky", key="k").json() for _ in range(3)]
    assert [fact["attempt"] for fact in facts] == [1, 2, 3]
    assert shop.post("/flaky", key="k").json()["attempt"] == 3, "a replay tells of the attempt that succeeded"


def test_a_derived_key_is_the_same_on_every_retry(shop: Server) -> None:
    facts = [shop.post("/flaky", key="k", json={"a": 1, "b": 2}).json()]
    facts.append(
        shop.raw(f'{HEADER}: "k";v=1', "Content-Type: application/json", path="/flaky", body=b'{"b":2, "a":1}').json()
    )
    facts.append(shop.post("/flaky", key="k", json={"b": 2, "a": 1}).json())
    assert len({fact["charge"] for fact in facts}) == 1
    assert len({fact["mail"] for fact in facts}) == 1
    assert [fact["run"] for fact in facts] == [1, 2, 3]


def test_a_derived_key_is_another_for_everything_else(shop: Server) -> None:
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", "/orders", {"key": "k", "json": {"a": 1}}),
        ("POST", "/orders", {"key": "k-2", "json": {"a": 1}}),
        ("PATCH", "/orders", {"key": "k", "json": {"a": 1}}),
        ("POST", "/other", {"key": "k", "json": {"a": 1}}),
        ("POST", "/orders", {"key": "k", "json": {"a": 1}, "headers": {"X-User": "alice"}}),
        ("POST", "/orders", {"key": "k", "json": {"a": 1}, "headers": {"X-User": "bob"}}),
        ("POST", "/orders", {"key": "body", "json": {"a": 1}}),
        ("POST", "/orders", {"key": "body-2", "json": {"a": 2}}),
        ("POST", "/orders?q=1", {"key": "query", "json": {"a": 1}}),
        ("POST", "/orders", {"json": {"a": 1}}),
    ]
    found = []
    for method, path, options in requests:
        answer = shop.request(method, path, **options)
        assert_original(answer)
        found += [answer.json()["charge"], answer.json()["mail"]]
    assert len(set(found)) == 2 * len(requests)


def test_a_derived_key_depends_on_the_content_of_the_request(
    make_app: Callable[..., Flask], serve: Callable[..., Server], runs: Runs
) -> None:
    """After a refusal another request may come under the key: it is another charge."""
    server_app = make_app()
    server_app.post("/")(idempotent(telling(runs, lambda run: 429 if run == 1 else 201)))
    server = serve(server_app)
    one, two = (server.post(key="k", json={"amount": amount}).json() for amount in (1, 2))
    assert one["run"] + 1 == two["run"]
    assert one["charge"] != two["charge"]


def test_a_derived_key_belongs_to_one_app(make_app: Callable[..., Flask], serve: Any, runs: Runs) -> None:
    found = []
    for name in ("shop", "bank", "shop"):
        app = make_app(name)
        app.post("/")(idempotent(telling(runs, lambda run: 500)))
        found.append(serve(app).post(key="k").json()["charge"])
    assert found[0] == found[2] != found[1], "every worker of an app derives the same"


def test_a_derived_key_fits_any_service_and_shows_nothing(shop: Server) -> None:
    facts = shop.post("/orders", key="tell-tale", headers={"X-User": "tell-tale"}).json()
    assert re.fullmatch(r"[0-9a-f]{64}", facts["charge"])
    assert re.fullmatch(r"[0-9a-f]{64}", facts["mail"])


def test_purposes_do_not_run_together(guarded: Callable[..., Server]) -> None:
    server = guarded(lambda: {"keys": [current_idempotency.derive(name) for name in ("a", "ab", "", "b", "é", "a\0")]})
    keys = server.post(key="k").json()["keys"]
    assert len(set(keys)) == len(keys)


def test_it_is_there_in_generators_that_keep_their_context(guarded: Callable[..., Server]) -> None:
    """A stream runs after the view has returned; its request is still protected."""

    def view() -> Response:
        active = current_idempotency.derive("charge")

        def chunks() -> Any:
            yield "same" if active == current_idempotency.derive("charge") else "other"

        return Response(stream_with_context(chunks()))

    server = guarded(view)
    first = server.post(key="k")
    assert first.text == "same"
    assert_replay(server.post(key="k"), first)


# --- Outside --------------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[], Any]] = {
    "key": lambda: current_idempotency.key,
    "attempt": lambda: current_idempotency.attempt,
    "derive": lambda: current_idempotency.derive("x"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_outside_of_a_guarded_view_it_says_so(make_app: Callable[..., Flask], use: Callable[[], Any]) -> None:
    app = make_app()
    words = "current_idempotency is only there while a view with @idempotent runs"
    with pytest.raises(RuntimeError, match=words):
        use()
    with app.app_context(), pytest.raises(RuntimeError, match=words):
        use()
    with app.test_request_context("/", method="POST", headers={HEADER: "k"}), pytest.raises(RuntimeError, match=words):
        use()


def test_it_is_not_there_before_the_view_nor_in_other_views_and_threads(
    make_app: Any, serve: Callable[..., Server]
) -> None:
    app, seen = make_app(), []

    def look(place: str) -> None:
        try:
            seen.append((place, current_idempotency.key))
        except RuntimeError:
            seen.append((place, "nothing"))

    app.before_request(lambda: look("before"))

    @app.post("/")
    @idempotent
    def view() -> str:
        look("view")
        thread = threading.Thread(target=look, args=("thread",))
        thread.start()
        thread.join()
        return ""

    app.post("/plain", endpoint="plain")(lambda: look("plain") or "")
    server = serve(app)
    server.post(key="k")
    assert dict(seen) == {
        "before": "nothing",
        "view": "k",
        "thread": "nothing",
    }
    seen.clear()
    server.post("/plain", key="k")
    assert dict(seen)["plain"] == "nothing"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_in_a_request_that_passes_through_it_has_no_key(
    make_app: Any, serve: Callable[..., Server], method: str
) -> None:
    """One view for two methods may derive keys in both."""
    app = make_app()

    @app.route("/", methods=["GET", "POST"])
    @idempotent
    def view() -> Any:
        return "", 200, {"X-Key": str(current_idempotency.key), "X-Derived": current_idempotency.derive("x")}

    answers = [serve(app).request(method, key="k") for _ in range(2)]
    assert [answer.headers["X-Key"] for answer in answers] == ["None", "None"]
    assert answers[0].headers["X-Derived"] != answers[1].headers["X-Derived"]


def test_two_requests_at_once_do_not_see_each_other(guarded: Callable[..., Server]) -> None:
    meet = threading.Barrier(2, timeout=10)

    def view() -> str:
        meet.wait()
        key = str(current_idempotency.key)
        meet.wait()
        assert current_idempotency.key == key
        return key

    server = guarded(view)
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda key=key: answers.update({key: server.post(key=key).text})) for key in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {"a": "a", "b": "b"}


class TestUnderPytestFlask:
    """pytest-flask keeps one application context over all calls of a test: nothing may hang on it."""

    @pytest.fixture
    def app(self, make_app: Callable[..., Flask]) -> Flask:
        app, runs = make_app(), Runs()
        app.post("/")(idempotent(telling(runs, lambda run: 500 if run == 1 else 201)))
        app.post("/plain", endpoint="plain")(lambda: str(current_idempotency.key))
        return app

    def test_a_request_leaves_nothing_in_the_application_context(self, app: Flask, client: Any) -> None:
        assert current_app == app, "the context that pytest-flask has pushed"
        client.post("/", headers={HEADER: "k"})
        assert not [name for name in vars(g) if "idempot" in name.lower()]
        client.get("/nowhere")  # pytest-flask's client keeps the last request: now it is this one
        with pytest.raises(RuntimeError, match="only there while"):
            current_idempotency.key  # noqa: B018

    def test_a_later_request_does_not_find_an_earlier_one(self, app: Flask, client: Any) -> None:
        assert client.post("/", headers={HEADER: "k-1"}).json["key"] == "k-1"
        assert client.post("/", headers={HEADER: "k-2"}).json["key"] == "k-2"
        assert client.post("/").json["key"] is None
        assert client.post("/plain", headers={HEADER: "k-3"}) == 500

    def test_failures_and_replays_are_told_apart(self, client: Any) -> None:
        answers = [client.post("/", headers={HEADER: "k"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [500, 201, 201]
        assert [answer.json["attempt"] for answer in answers] == [1, 2, 2]
        assert [answer.headers.get(REPLAYED) for answer in answers] == [None, None, "true"]
