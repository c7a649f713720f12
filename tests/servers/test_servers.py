"""Each kind of server does what its fixture promises: a test that relies on it cannot pass for the wrong reason."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .binaries import BUILDS, NAMES, SYSTEM, binary
from .ports import Port, free_port
from .process import until
from .standalone import RedisProcess, User

pytestmark = pytest.mark.redis

NewRedis = Callable[..., RedisProcess]


def wait(client: redis.Redis) -> int:
    """How many replicas have the last write of this client."""
    return int(client.wait(1, 500))


def test_a_server_without_persistence_comes_back_empty_and_one_with_it_does_not(new_redis: NewRedis) -> None:
    kept = {}
    for persistent in (False, True):
        server = new_redis(persistent=persistent).start()
        with server.client() as client:
            client.set("key", "value")
        server.stop()
        server.start()
        with server.client() as client:
            kept[persistent] = client.get("key")
    assert kept == {False: None, True: b"value"}


def test_a_password_is_wanted(new_redis: NewRedis) -> None:
    server = new_redis(password="p@ss w/rd").start()
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    for url in (f"redis://127.0.0.1:{server.port}", f"redis://:wrong@127.0.0.1:{server.port}"):
        with redis.Redis.from_url(url) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_a_user_may_do_what_the_rules_say_and_nothing_else(new_redis: NewRedis) -> None:
    server = new_redis(password="admin", user=User("app", "p:w", ["~mine:*", "&mine:*", "+get", "+publish"])).start()
    with redis.Redis.from_url(server.user_url) as client:
        assert client.get("mine:key") is None
        assert client.publish("mine:channel", "") == 0
        for forbidden in (
            lambda: client.set("mine:key", ""),
            lambda: client.get("other"),
            lambda: client.publish("other", ""),
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                forbidden()


def test_a_unix_socket_leads_to_the_same_server(new_redis: NewRedis) -> None:
    server = new_redis(unix_socket=True).start()
    with server.client() as client, redis.Redis.from_url(server.unix_url) as other:
        client.set("key", "value")
        assert other.get("key") == b"value"


def fill(client: redis.Redis) -> None:
    for number in range(100):
        client.set(f"key-{number}", b"x" * 100_000)


def test_a_full_server_refuses_and_forgets_nothing(new_redis: NewRedis) -> None:
    server = new_redis(maxmemory=2_000_000).start()
    with server.client() as client:
        client.set("first", "value")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(client)
        assert client.get("first") == b"value"


def test_a_replica_has_what_its_master_has_and_acknowledges_it_unless_it_is_frozen(new_redis: NewRedis) -> None:
    master = new_redis(password="secret").start()
    replica = new_redis(password="secret", replica_of=master).start()
    with master.client() as client:
        until(lambda: client.info("replication").get("slave0", {}).get("state") == "online", "replication")
        client.set("key", "value")
        until(lambda: wait(client) == 1, "the replica to follow")
        with replica.client() as other:
            assert other.get("key") == b"value"
            with pytest.raises(redis.exceptions.ReadOnlyError):
                other.set("key", "other")
        replica.freeze()
        client.set("key", "newer")
        assert wait(client) == 0
        replica.thaw()
        until(lambda: wait(client) == 1, "the replica to catch up")


def test_a_frozen_server_answers_nothing_until_it_is_thawed(new_redis: NewRedis) -> None:
    server = new_redis().start()
    with server.client(socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.thaw()
        assert until(server.answers, "an answer")


def test_a_frozen_server_can_be_stopped_and_started(new_redis: NewRedis) -> None:
    server = new_redis().start()
    server.freeze()
    server.stop()
    assert not server.running
    assert server.start().answers()


def test_a_start_that_fails_leaves_no_process_and_shows_the_servers_log(new_redis: NewRedis) -> None:
    server = new_redis("--maxmemory-policy", "nonsense")
    with pytest.raises(AssertionError, match="exited with 1") as caught:
        server.start()
    assert any("FATAL CONFIG FILE ERROR" in note and "nonsense" in note for note in caught.value.__notes__)
    assert not server.running


def test_a_port_is_kept_for_its_server_while_it_is_down(new_redis: NewRedis) -> None:
    server = new_redis()
    for _ in range(2):
        with socket.socket() as stranger:
            with pytest.raises(OSError, match="in use"):
                stranger.bind(("127.0.0.1", server.port))
            with pytest.raises(ConnectionRefusedError):
                stranger.connect(("127.0.0.1", server.port))
        server.start()
        server.stop()


def test_a_port_that_is_no_longer_wanted_is_free() -> None:
    port = Port(bus=True)
    number = port.number
    for each in (number, number + 10_000):
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", each))
    del port
    for each in (number, number + 10_000, free_port()):
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", each))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_do_not_outlive_a_test_run_that_is_killed(tmp_path: Path, how: signal.Signals) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from tests.servers.standalone import RedisProcess
        servers = [RedisProcess(Path(sys.argv[1])).start() for _ in range(2)]
        servers[0].freeze()
        print(*(server.pid for server in servers), flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root) as run:
        assert run.stdout is not None
        pids = [int(each) for each in run.stdout.readline().split()]
        assert len(pids) == 2
        run.send_signal(how)
    until(lambda: not any(alive(pid) for pid in pids), "the servers' end")


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0]
    return False


def test_every_version_is_what_it_says(any_server: RedisProcess, request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.params["any_server"]
    with any_server.client() as client:
        info = client.info("server")
    said = info.get("valkey_version", info["redis_version"])
    if name == SYSTEM:
        assert tuple(map(int, said.split("."))) >= (7, 0)
    else:
        assert said == BUILDS[name].version
        assert said.startswith(name.partition("-")[2])
        assert ("valkey_version" in info) == name.startswith("valkey")
    assert client.dbsize() == 0


def test_what_is_not_installed_is_asked_for_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.servers.binaries.HOME", tmp_path)
    for name in BUILDS:
        with pytest.raises(AssertionError, match="make servers"):
            binary(name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="make tools"):
        binary()
    with pytest.raises(AssertionError, match=r"redis-7\.4"):
        binary("redis-1.0")


def test_servers_start_quickly(new_redis: NewRedis) -> None:
    servers = [new_redis(version=version) for version in NAMES]
    began = time.monotonic()
    for server in servers:
        server.start()
    assert time.monotonic() - began < 10
