"""A real server on a socket for each app, and both stores behind the same tests."""

from __future__ import annotations

import gc
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
import requests
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from flask_idempotent import Idempotency, idempotent

from ..servers.standalone import RedisProcess

Found = TypeVar("Found")

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
PATIENCE = 10.0  # seconds after which a test gives up on something that should have happened
MADE_ANEW = frozenset({"set-cookie", "date", "server", "connection", "content-length", "transfer-encoding"})
TITLES = {
    "key-missing": (400, "Idempotency-Key is missing"),
    "key-invalid": (400, "Idempotency-Key is invalid"),
    "key-reused": (422, "Idempotency-Key is already used"),
    "request-in-progress": (409, "A request is outstanding for this Idempotency-Key"),
    "outcome-unknown": (409, "The outcome of this Idempotency-Key is unknown"),
    "store-unavailable": (503, "The idempotency store is unavailable"),
    "record-unreadable": (500, "The stored outcome cannot be read"),
}


# --- Waiting, counting, comparing ---------------------------------------------------------------------------------


def eventually(look: Callable[[], Found | None], what: str = "it did not happen", within: float = PATIENCE) -> Found:
    """What ``look`` returns as soon as that is true; fails after ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        if (found := look()) or isinstance(found, requests.Response):  # which is false when it is an error
            return found
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


class Runs:
    """Counts how often a view ran; calling it counts one."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        with self._lock:
            self.count += 1
            return self.count


class Gate:
    """Holds views up until the test opens it."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._inside = threading.Semaphore(0)

    def __call__(self) -> None:
        self._inside.release()
        assert self._open.wait(PATIENCE), "the gate stayed shut"

    def await_view(self) -> None:
        assert self._inside.acquire(timeout=PATIENCE), "no view came to the gate"

    def open(self) -> None:
        self._open.set()

    def shut(self) -> None:
        self._open.clear()


def kept_headers(response: requests.Response) -> list[tuple[str, str]]:
    """The headers that a replay must repeat, each line of its own."""
    return [(name, value) for name, value in response.raw.headers.items() if name.lower() not in MADE_ANEW]


def header_lines(response: requests.Response, name: str) -> list[str]:
    return [value for found, value in response.raw.headers.items() if found.lower() == name.lower()]


def assert_original(response: requests.Response, status: int = 201) -> None:
    assert response.status_code == status, response.text
    assert REPLAYED not in response.headers


def assert_replay(again: requests.Response, first: requests.Response) -> None:
    """Status line, body and headers of the first answer, and the mark of a replay; the first has no such mark."""
    assert REPLAYED not in first.headers
    assert header_lines(again, REPLAYED) == ["true"], again.text
    assert (again.status_code, again.reason) == (first.status_code, first.reason)
    assert again.content == first.content
    assert [line for line in kept_headers(again) if line[0] != REPLAYED] == kept_headers(first)


def assert_problem(response: requests.Response, code: str) -> dict[str, Any]:
    """One of the guard's own errors, with every member of the problem object."""
    status, title = TITLES[code]
    assert (response.status_code, response.headers["Content-Type"]) == (status, "application/problem+json")
    assert REPLAYED not in response.headers
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "retryable"}
    assert (problem["code"], problem["status"], problem["title"]) == (code, status, title)
    return problem


def once_ended(client: Client, *, key: str = "k", **options: Any) -> requests.Response:
    """The answer when the first request has ended: asks again as long as it is still running."""

    def ask() -> requests.Response | None:
        answer = client.post(key=key, **options)
        if answer.status_code != 409 or REPLAYED in answer.headers:
            return answer
        assert_problem(answer, "request-in-progress")
        return None

    return eventually(ask)


# --- Servers ------------------------------------------------------------------------------------------------------


class _QuietHandler(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        if type == "error":
            sys.stderr.write(message % args + "\n")


class Client:
    """Sends requests to ``127.0.0.1:port``, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method: str, path: str = "/", *, key: str | None = None, **options: Any) -> requests.Response:
        headers = dict(options.pop("headers", None) or {})
        if key is not None:
            headers[HEADER] = key
        with requests.Session() as session:
            session.trust_env = False
            options.setdefault("allow_redirects", False)
            options.setdefault("timeout", 2 * PATIENCE)
            return session.request(method, f"http://127.0.0.1:{self.port}{path}", headers=headers, **options)

    def post(self, path: str = "/", *, key: str | None = None, **options: Any) -> requests.Response:
        return self.request("POST", path, key=key, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=2 * PATIENCE)

    def raw(self, *lines: str | bytes, method: str = "POST", path: str = "/", body: bytes = b"") -> requests.Response:
        """Send header lines as they are, byte for byte, and read the answer."""
        heads = [
            f"{method} {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            *lines,
            *([] if any(b"encoding" in _bytes(line).lower() for line in lines) else [f"Content-Length: {len(body)}"]),
        ]
        with closing(self.connect()) as connection:
            connection.sendall(b"".join(_bytes(line) + b"\r\n" for line in heads) + b"\r\n" + body)
            return read_answer(connection, method)


def _bytes(line: str | bytes) -> bytes:
    return line.encode("latin-1") if isinstance(line, str) else line


def read_answer(connection: socket.socket, method: str = "POST") -> requests.Response:
    """The answer on a socket, in the form in which ``requests`` gives them."""
    answer = http.client.HTTPResponse(connection, method=method)
    answer.begin()
    response = requests.Response()
    response.status_code, response.reason, response._content = answer.status, answer.reason, answer.read()
    response.headers.update(answer.headers.items())
    response.raw = answer
    answer.close()
    return response


class Server(Client):
    """A threaded server on a free loopback port. Closing it waits for the requests that it has begun."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_QuietHandler)
        self._server.daemon_threads = False
        super().__init__(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.002,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Serves a WSGI app on a real socket until the test ends."""
    servers: list[Server] = []

    def start(app: Callable[..., Any]) -> Server:
        servers.append(Server(app))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def gate(serve: Any) -> Iterator[Gate]:
    """Opens by itself before the servers are closed."""
    gate = Gate()
    yield gate
    gate.open()


# --- Apps ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreUnderTest:
    """One of the two stores.

    :param config: the settings that choose it.
    :param redis: its server; None for SimpleCache.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    redis: RedisProcess | None = None

    @property
    def workers(self) -> int:
        """How many apps can share it."""
        return 1 if self.redis is None else 2


def redis_config(server: RedisProcess) -> dict[str, Any]:
    """A Redis that has time to answer on a busy test machine; the tests of outages have their own limits."""
    return {
        "IDEMPOTENCY_CACHE_REDIS_URL": server.url,
        "IDEMPOTENCY_SHARED_PATH": str(server.directory / f"records-{uuid4()}.sqlite"),
        "IDEMPOTENCY_STORE_TIMEOUT": 3,
    }


@pytest.fixture(params=["SimpleCache", pytest.param("Redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreUnderTest:
    """The store, empty, and with keys of the test's own: what another test has left running cannot touch them."""
    if request.param == "SimpleCache":
        return StoreUnderTest("SimpleCache", {"IDEMPOTENCY_CACHE_TYPE": "SimpleCache"})
    server = request.getfixturevalue("redis_server")
    own = {"IDEMPOTENCY_KEY_PREFIX": f"{uuid4()}:", "IDEMPOTENCY_SHARED_PATH": str(tmp_path / "records.sqlite")}
    return StoreUnderTest("Redis", {**redis_config(server), **own}, server)


@pytest.fixture
def bare_app() -> Iterator[Callable[..., Flask]]:
    """Makes apps without the extension; whatever a test sets up on them is let go in the end."""
    apps: list[Flask] = []

    def make(name: str = "shop", **config: Any) -> Flask:
        app = Flask(name)
        app.secret_key = "secret"
        app.config.update(config)
        apps.append(app)
        return app

    yield make
    for app in apps:
        if "idempotency" in app.extensions:
            app.extensions["idempotency"].close(app)


@pytest.fixture
def make_app(store: StoreUnderTest, bare_app: Callable[..., Flask]) -> Callable[..., Flask]:
    """Makes apps over the store, with ``IDEMPOTENCY_*`` settings given in lower case."""

    def make(name: str = "shop", **settings: Any) -> Flask:
        app = bare_app(name, **store.config, **setting_names(settings))
        Idempotency(app)
        return app

    return make


@pytest.fixture
def guarded(make_app: Callable[..., Flask], serve: Callable[..., Server]) -> Callable[..., Server]:
    """Serves one guarded view at ``/``; the keywords are the decorator's, ``settings`` the app's."""

    def start(view: Callable[..., Any], settings: dict[str, Any] | None = None, **options: Any) -> Server:
        app = make_app(**settings or {})
        app.post("/")(idempotent(**options)(view))
        return serve(app)

    return start


@pytest.fixture
def workers(store: StoreUnderTest, guarded: Callable[..., Server]) -> Callable[..., list[Server]]:
    """The same as :func:`guarded` in as many workers as can share the store: what one answers, the other repeats."""

    def start(make_view: Callable[[], Callable[..., Any]], **options: Any) -> list[Server]:
        return [guarded(make_view(), **options) for _ in range(store.workers)]

    return start


def setting_names(settings: dict[str, Any]) -> dict[str, Any]:
    return {f"IDEMPOTENCY_{name.upper()}": value for name, value in settings.items()}


@pytest.fixture(autouse=True, scope="package")
def _nothing_left_behind() -> Iterator[None]:
    """No thread outlives the tests. (Those of asgiref end with the garbage that holds their executors.)"""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 5
    while (left := _threads_since(before)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert not left, "threads are left"


def _threads_since(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread not in before and thread.is_alive()}


# --- Other processes ----------------------------------------------------------------------------------------------


class Worker(Client):
    """``tests.web.worker`` in a process of its own: can be killed, frozen and thawed."""

    def __init__(self, config: dict[str, Any], directory: Path) -> None:
        self.directory = directory
        command = [sys.executable, "-m", "tests.web.worker", json.dumps(config), str(directory)]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root)}
        )
        super().__init__(0)

    def await_port(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.strip().isdigit(), "the worker did not start"
        self.port = int(line)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)


class Workers:
    """Makes worker processes that share a directory, in which the views note that they ran."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._workers: list[Worker] = []
        self.hold = directory / "hold"  # while this file is there, views wait

    def start(self, config: dict[str, Any], count: int = 1) -> list[Worker]:
        started = [Worker(config, self._directory) for _ in range(count)]
        self._workers += started
        for worker in started:
            worker.await_port()
        return started

    def lines(self, word: str) -> list[str]:
        """What the views have noted: ``began`` or ``ended``, one line for each."""
        noted = self._directory / word
        return noted.read_text().splitlines() if noted.exists() else []

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Workers]:
    directory = tmp_path / "workers"
    directory.mkdir()
    workers = Workers(directory)
    yield workers
    workers.close()
