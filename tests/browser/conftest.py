"""A real Chromium, the shop on its socket, and what can be proven about a purchase afterwards."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from example_app import create_app
from example_app.orders import db
from example_app.sandbox import Sandbox
from example_app.serving import Server

from ..servers.ports import free_port
from .site import Site

ROOT = Path(__file__).parents[2]
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP shop.test 127.0.0.1",  # a site that is neither https nor localhost
]  # fmt: skip
PATIENCE = 30  # seconds

expect.set_options(timeout=PATIENCE * 1000)


# --- Chromium -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="package")
def launch() -> Iterator[Callable[..., Browser]]:
    """Start a Chromium; with ``memory=True`` it goes back to pages as it left them (the "bfcache"), as users' do."""
    binary = shutil.which("chromium")
    assert binary, "chromium is missing: run `make test`, which installs it"
    with sync_playwright() as driver:
        started: dict[bool, Browser] = {}

        def launch(*, memory: bool = True) -> Browser:
            if memory not in started:
                dropped = ["--disable-back-forward-cache"] if memory else []  # Playwright's own default
                started[memory] = driver.chromium.launch(
                    executable_path=binary, args=ARGUMENTS, ignore_default_args=dropped
                )
            return started[memory]

        yield launch
        for browser in started.values():
            browser.close()


@pytest.fixture
def open_context(launch: Callable[..., Browser]) -> Iterator[Callable[..., BrowserContext]]:
    """Make browser profiles, each empty; in the end no page may have raised an error or broken the shop's policy."""
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def watch(page: Page) -> None:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)

    def open_context(base_url: str, *, memory: bool = True, **options: Any) -> BrowserContext:
        context = launch(memory=memory).new_context(base_url=base_url, **options)
        context.set_default_timeout(PATIENCE * 1000)
        context.on("page", watch)
        contexts.append(context)
        return context

    yield open_context
    for context in contexts:
        context.close()
    assert complaints == []


# --- The shop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setattr("example_app.serving.POLL_SECONDS", 0.005)
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def settings(tmp_path: Path, sandbox: Sandbox) -> Callable[[str], dict[str, Any]]:
    """The settings of a shop with some address: one database file and one sandbox, which tells it of payments."""

    def settings(url: str) -> dict[str, Any]:
        return {
            "SQLALCHEMY_DATABASE_URI": f"sqlite:///{tmp_path / 'shop.db'}",
            "STRIPE_API_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": sandbox.url,
            "STRIPE_WEBHOOK_SECRET": sandbox.add_webhook(f"{url}/webhook"),
            "IDEMPOTENCY_SHARED_PATH": str(tmp_path / "host" / "records.sqlite"),
        }

    return settings


@pytest.fixture
def listen() -> Iterator[Callable[[], Server]]:
    """Open servers in this process, for apps to be served on."""
    servers: list[Server] = []

    def listen() -> Server:
        servers.append(Server())
        return servers[-1]

    yield listen
    for server in servers:
        server.stop()


@pytest.fixture
def open_shop(
    settings: Callable[[str], dict[str, Any]], listen: Callable[[], Server]
) -> Iterator[Callable[..., Server]]:
    """Serve the shop in this process, with further settings."""
    shops: list[Flask] = []

    def open_shop(**config: Any) -> Server:
        server = listen()
        shops.append(create_app({"TESTING": True, **settings(server.url), **config}))
        server.start(shops[-1])
        return server

    yield open_shop
    for shop in shops:
        shop.extensions["idempotency"].close(shop)
        with shop.app_context():
            db.session.remove()
            db.engine.dispose()


@pytest.fixture
def shop(open_shop: Callable[..., Server]) -> Server:
    return open_shop()


class ShopProcess:
    """The shop in a process of its own: it can be killed, and started anew on the same port and database."""

    def __init__(self, port: int, settings: dict[str, Any]) -> None:
        self._settings = json.dumps(settings)
        self._process: subprocess.Popen[str] | None = None
        self._port = port
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> ShopProcess:
        command = [sys.executable, "-m", "tests.browser.worker", str(self._port), self._settings]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.strip() == str(self._port), "the shop did not start"
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture
def shop_process(settings: Callable[[str], dict[str, Any]]) -> Iterator[Callable[..., ShopProcess]]:
    """Start the shop in a process of its own, with further settings."""
    processes: list[ShopProcess] = []

    def start(**config: Any) -> ShopProcess:
        port = free_port()
        processes.append(ShopProcess(port, {**settings(f"http://127.0.0.1:{port}"), **config}))
        return processes[-1].start()

    yield start
    for process in processes:
        process.kill()


@pytest.fixture(params=["with JavaScript", "without JavaScript"])
def scripted(request: pytest.FixtureRequest) -> bool:
    """Whether the buyer's browser runs scripts: a test that takes this runs in both ways."""
    return bool(request.param == "with JavaScript")


@pytest.fixture
def page(open_context: Callable[..., BrowserContext], shop: Server) -> Page:
    """A page with JavaScript on the shop in this process."""
    return open_context(shop.url).new_page()


# --- A site of forms and calls ------------------------------------------------------------------------------------

# What the script tells the page, noted before the page's own scripts run.
EVENTS = """
window.heard = [];
for (const type of ["start", "retry", "done", "fail", "recall"]) {
  document.addEventListener(`idempotent:${type}`, ({ target, detail }) => {
    const { response, error, ...plain } = detail;
    const told = { answered: response?.status ?? null, error: error?.name ?? null };
    heard.push({ type, target: target.nodeName, ...told, ...plain });
  });
}
"""


@pytest.fixture
def make_site(
    listen: Callable[[], Server], open_context: Callable[..., BrowserContext]
) -> Iterator[Callable[..., tuple[Site, Page]]]:
    """Serve a site and open an empty page for it; what the script tells is in ``heard`` there."""
    sites: list[Site] = []

    def make_site(host: str = "127.0.0.1", init: str = "", *, memory: bool = True, **config: Any) -> tuple[Site, Page]:
        sites.append(Site(**config))
        server = listen()
        server.start(sites[-1].app)
        context = open_context(f"http://{host}:{server.port}", memory=memory)
        context.add_init_script(EVENTS + init)
        return sites[-1], context.new_page()

    yield make_site
    for site in sites:
        site.app.extensions["idempotency"].close(site.app)


@pytest.fixture
def site_and_page(make_site: Callable[..., tuple[Site, Page]]) -> tuple[Site, Page]:
    return make_site()


# --- What is true afterwards --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What there is after a purchase, as database and Stripe's stand-in tell it.

    :param orders: rows in the shop's database.
    :param sessions: Checkout Sessions that were created.
    :param charges: sessions that were paid.
    :param refunds: how often money was sent back.
    """

    orders: int
    sessions: int
    charges: int
    refunds: int = 0


@pytest.fixture
def truth(tmp_path: Path, sandbox: Sandbox) -> Callable[[], Truth]:
    def truth() -> Truth:
        with closing(sqlite3.connect(tmp_path / "shop.db")) as database:
            [[orders]] = database.execute("SELECT count(*) FROM orders")
            [[shipments]] = database.execute("SELECT count(*) FROM shipments")
        with urllib.request.urlopen(f"{sandbox.url}/_sandbox/state", timeout=PATIENCE) as answer:
            state = json.load(answer)
        paid = [session for session in state["sessions"] if session["payment_status"] == "paid"]
        refunds = [event for event in state["events"] if event["type"] == "refund.created"]
        assert shipments <= len({session["payment_intent"] for session in paid}) == len(paid)
        assert state["requests"]["mismatched"] == 0
        return Truth(orders, len(state["sessions"]), len(paid), len(refunds))

    return truth


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Poll until a condition holds; fail the test when it does not in time."""

    def wait_until(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            time.sleep(0.01)

    return wait_until
