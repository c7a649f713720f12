"""The shop and the sandbox as programs: ports, addresses, signals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from example_app.__main__ import DEFAULT_PORT, listen
from example_app.serving import Server

ROOT = Path(__file__).resolve().parents[2]


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.status, answer.read()


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


@pytest.fixture
def run(tmp_path, bare_environment):
    """Run a module as a program and return it with its first line of output; it is ended in the end."""
    programs = []

    def run(module="example_app", *arguments, **environment):
        environment = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}", **environment}
        program = subprocess.Popen(
            [sys.executable, "-m", module, *arguments], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        programs.append(program)
        return program, program.stdout.readline()

    yield run
    for program in programs:
        program.kill()
        program.communicate()


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_server_answers_until_it_is_stopped():
    with Server() as server:
        server.start(hello)
        assert get(server.url) == (200, b"hello")
    with pytest.raises(OSError, match="refused"):
        get(server.url)
    server.stop()


def test_a_server_that_was_never_started_gives_its_port_back():
    server = Server()
    server.stop()
    with pytest.raises(RuntimeError, match="once"):
        server.start(hello)
    Server(port=server.port).stop()


def test_a_server_is_started_once():
    with Server() as server:
        server.start(hello)
        with pytest.raises(RuntimeError, match="once"):
            server.start(hello)


def test_a_request_in_progress_is_finished_before_the_server_stops():
    entered, leave = threading.Event(), threading.Event()

    def slow(environ, start_response):
        entered.set()
        assert leave.wait(10)
        return hello(environ, start_response)

    server = Server()
    server.start(slow)
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(get, server.url)
        assert entered.wait(10)
        stopped = pool.submit(server.stop)
        leave.set()
        stopped.result(10)
        assert answer.result(10) == (200, b"hello")


def test_an_idle_connection_does_not_hold_up_the_end():
    server = Server()
    server.start(hello)
    with socket.create_connection((server.host, server.port)):
        get(server.url)
        server.stop()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost", ""])
def test_a_server_is_never_open_to_others(host):
    with pytest.raises(ValueError, match="loopback"):
        Server(host=host)


def test_an_ipv6_address_stands_in_brackets():
    try:
        server = Server(host="::1")
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        assert server.url == f"http://[::1]:{server.port}"


def test_the_port_is_the_one_that_was_asked_for():
    with Server() as free:
        port = free.port
    with listen(str(port)) as server:
        assert server.port == port


def test_without_a_wish_it_is_5000_or_any_free_port():
    with listen(None) as first, listen("") as second:
        assert second.port not in (first.port, DEFAULT_PORT)


@pytest.mark.parametrize("port", ["http", "-1", "65536", "5000.0", "５０００", "999999999"])
def test_what_is_no_port_is_said_so(port):
    with pytest.raises(SystemExit, match="PORT takes a number"):
        listen(port)


def test_a_port_that_is_taken_is_an_error_when_it_was_asked_for(taken_port):
    with pytest.raises(SystemExit, match="in use"):
        listen(str(taken_port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_shop_says_where_it_is_and_leaves_when_told(run, number):
    program, line = run(PORT="0")
    found = re.search(r"Shop on (http://127\.0\.0\.1:\d+) .* sandbox at (http://\S+) .* store: memory", line)
    assert found, line
    assert b"Morning mug" in get(found[1])[1]
    assert b"Morning mug" in get(found[1].replace("127.0.0.1", "localhost"))[1]
    with pytest.raises(HTTPError) as caught:
        get(Request(found[1], headers={"Host": "evil.example"}))
    caught.value.close()
    assert caught.value.code == 400
    assert b"stand-in for Stripe" in get(found[2])[1]
    program.send_signal(number)
    _, errors = program.communicate(timeout=10)
    assert (program.returncode, errors) == (0, "")


def test_by_itself_the_shop_sells_is_paid_and_refunds(run, wait_until):
    """No Redis, no account: the sandbox's own events reach the shop's webhook."""
    _, line = run(PORT="0")
    shop = re.search(r"Shop on (\S+)", line)[1]

    def post(url, body, kind, key):
        return urlopen(Request(url, body, {"Content-Type": kind, "Idempotency-Key": key}), timeout=10)

    with post(
        f"{shop}/checkout", b'{"items": [{"product": "reading-lamp", "quantity": 1}]}', "application/json", "k"
    ) as answer:
        payment = json.load(answer)["url"]
    with post(payment, b"action=pay", "application/x-www-form-urlencoded", "") as page:  # leads back to the shop
        order = page.url
    assert order.startswith(f"{shop}/orders/ord_")
    wait_until(lambda: json.loads(get(f"{order}.json")[1])["status"] == "paid")
    assert json.loads(get(f"{order}.json")[1])["shipped"] is True
    with post(f"{order}/refund", b"", "application/json", "r") as answer:
        assert json.load(answer)["status"] == "refunded"


def test_with_a_key_the_shop_talks_to_stripe_and_starts_no_sandbox(run):
    program, line = run(PORT="0", STRIPE_API_KEY="sk_test_1", STRIPE_WEBHOOK_SECRET="whsec_1")
    assert "payments: Stripe" in line
    assert "sandbox" not in line
    program.send_signal(signal.SIGTERM)
    assert program.communicate(timeout=10) == ("", "")


def test_with_a_key_and_no_secret_the_shop_says_what_is_missing_and_where_it_comes_from(run):
    program, line = run(PORT="0", STRIPE_API_KEY="sk_test_1")
    url = re.search(r"Shop on (\S+)", line)[1]
    hint = program.stdout.readline()
    assert "STRIPE_WEBHOOK_SECRET" in hint
    assert f"stripe listen --forward-to {url}/webhook" in hint


def test_the_shop_does_not_start_on_a_taken_port(run, taken_port):
    program, line = run(PORT=str(taken_port))
    _, errors = program.communicate(timeout=10)
    assert line == ""
    assert program.returncode == 1
    assert errors.count("\n") == 1
    assert str(taken_port) in errors


def test_the_sandbox_says_with_what_it_signs_the_events_for_a_webhook(run):
    program, _ = run("example_app.sandbox", "--webhook", "http://localhost:1/webhook")
    assert re.search(r"http://localhost:1/webhook, signed with whsec_\w{20,}", program.stdout.readline())


def test_the_sandbox_sends_events_to_this_computer_only(run):
    program, _ = run("example_app.sandbox", "--webhook", "http://example.com/webhook")
    _, errors = program.communicate(timeout=10)
    assert program.returncode == 1
    assert errors.startswith("--webhook: url takes")


def test_the_sandbox_is_a_program_of_its_own(run):
    program, line = run("example_app.sandbox")
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    assert b"stand-in for Stripe" in get(found[0])[1]
    program.send_signal(signal.SIGTERM)
    _, errors = program.communicate(timeout=10)
    assert (program.returncode, errors) == (0, "")
