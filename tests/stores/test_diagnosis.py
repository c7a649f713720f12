"""What an examination of a store finds: on real servers, well and unwell, each with what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_idempotent.config import Settings
from flask_idempotent.core.store import Store
from flask_idempotent.stores import checks, open_store, own_backend
from flask_idempotent.stores.checks import examine, round_trip
from flask_idempotent.stores.diagnosis import diagnose, milliseconds_left, tiers
from flask_idempotent.stores.findings import Finding, Level, per_server
from flask_idempotent.stores.nodes import Nodes
from flask_idempotent.stores.redis import RedisStore
from flask_idempotent.stores.servers import Server
from flask_idempotent.stores.source import read_source

from ..servers.cluster import Cluster
from ..servers.link import Link
from ..servers.sentinel import SentinelSet
from ..servers.standalone import RedisProcess, User
from .conftest import Connect, memory
from .making import KEY, TTL, claim_of, eventually
from .topologies import ALONE, FEWEST_RIGHTS, TOPOLOGIES, cluster_settings, sentinel_settings

PREFIX = "idempotency:"
ALL = [
    "store", "connection", "round trip", "clock", "version", "eviction", "persistence", "role", "replicas", "rights",
    "trial", "wake-ups", "local tier",
]  # fmt: skip
OK, NOTE, WARNING, FAILURE = Level
Open = Callable[..., Store]


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens the store that an app's settings name, Redis alone unless ``settings`` say otherwise."""
    made: list[Store] = []

    def opened(settings: Settings = ALONE, **config: Any) -> Store:
        app = Flask(__name__)
        app.config.update({f"IDEMPOTENCY_CACHE_{name}": value for name, value in config.items()})
        source, mistakes = read_source(app.config, {})
        assert not mistakes
        made.append(open_store(own_backend(app, source), settings))
        return made[-1]

    yield opened
    for store in made:
        store.close()


def found(store: Store) -> dict[str, Finding]:
    findings = diagnose(store, PREFIX)
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def levels(findings: dict[str, Finding]) -> dict[str, Level]:
    """Those that are not all right."""
    return {check: finding.level for check, finding in findings.items() if finding.level is not OK}


# --- All is well ----------------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_a_redis_that_is_fit_for_its_work_has_every_check_and_no_trouble(
    new_redis: Callable[..., RedisProcess], opened: Open
) -> None:
    server = new_redis(persistent=True).start()
    findings = found(opened(REDIS_URL=server.url))
    assert list(findings) == ALL
    assert levels(findings) == {}
    assert findings["store"].text == f"Redis 127.0.0.1:{server.port}/0"
    assert findings["version"].text.startswith("Redis ")
    with server.client() as client:
        assert client.dbsize() == 0, "it leaves nothing behind"


@pytest.mark.redis
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_every_way_to_reach_a_redis_can_be_examined(
    request: pytest.FixtureRequest, opened: Open, topology: str
) -> None:
    fixture, settings = TOPOLOGIES[topology]
    config = {name.removeprefix("CACHE_"): value for name, value in settings(request.getfixturevalue(fixture)).items()}
    findings = found(opened(**config))
    assert list(findings) == ALL
    expected = {"persistence": WARNING}  # the servers of the tests keep nothing
    if topology == "user":  # INFO is allowed, and CONFIG is not
        expected = {"persistence": NOTE}
    if topology in ("sentinel", "cluster"):
        expected |= {"replicas": NOTE}
    assert levels(findings) == expected
    shown = " ".join(finding.text for finding in findings.values())
    assert FEWEST_RIGHTS.password not in shown
    assert "adm1n" not in shown


@pytest.mark.redis
def test_every_server_that_is_supported_passes_and_is_named(any_server: RedisProcess, opened: Open) -> None:
    findings = found(opened(REDIS_URL=any_server.url))
    assert levels(findings) == {"persistence": WARNING}
    with any_server.client() as client:
        info = client.info("server")
    product = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    assert findings["version"].text == product


@pytest.mark.redis
def test_a_sentinel_set_says_which_server_is_its_master(opened: Open, sentinel_set: SentinelSet) -> None:
    config = {name.removeprefix("CACHE_"): value for name, value in sentinel_settings(sentinel_set).items()}
    findings = found(opened(**config))
    _, port = sentinel_set.master_address()
    assert f"the master 127.0.0.1:{port}" in findings["connection"].text
    assert "sentinel mymaster" in findings["store"].text
    assert findings["replicas"].text.startswith("2 connected, IDEMPOTENCY_MIN_REPLICAS is 0: a failover may lose")


@pytest.mark.redis
def test_all_masters_of_a_cluster_are_asked(opened: Open, cluster: Cluster) -> None:
    config = {name.removeprefix("CACHE_"): value for name, value in cluster_settings(cluster).items()}
    with cluster.masters[1].client() as client:
        client.config_set("maxmemory-policy", "allkeys-lfu")
    try:
        findings = diagnose(opened(**config), PREFIX)
    finally:
        with cluster.masters[1].client() as client:
            client.config_set("maxmemory-policy", "noeviction")
    assert all(str(node.port) in findings[1].text for node in cluster.masters)
    evicting = {finding.text: finding.level for finding in findings if finding.check == "eviction"}
    assert evicting == {
        f"127.0.0.1:{cluster.masters[0].port}: maxmemory-policy noeviction": OK,
        f"127.0.0.1:{cluster.masters[1].port}: "
        "Redis evicts records (allkeys-lfu); set maxmemory-policy noeviction": WARNING,
        f"127.0.0.1:{cluster.masters[2].port}: maxmemory-policy noeviction": OK,
    }
    (version,) = [finding for finding in findings if finding.check == "version"]
    assert version.text.startswith("each of 3: Redis ")


# --- Where it is ----------------------------------------------------------------------------------------------------


def test_the_memory_of_a_process_is_tried_out(opened: Open) -> None:
    findings = found(opened())
    assert [*findings] == ["store", "trial"]
    assert levels(findings) == {}
    assert findings["store"].text == "the memory of this process"


def test_a_memory_without_room_fails_its_trial() -> None:
    store = memory(threshold=1)
    store.claim(claim_of())
    finding = found(store)["trial"]
    assert finding.level is FAILURE
    assert "claim failed, the memory store holds its limit of 1 records" in finding.text


@pytest.mark.redis
@pytest.mark.parametrize("tier", ["memory", "shared"])
def test_two_tiers_are_named_and_both_are_tried(
    redis_server: RedisProcess, opened: Open, tmp_path: Path, tier: str
) -> None:
    path = tmp_path / "records"
    store = opened(Settings(local_tier=tier, shared_path=path), REDIS_URL=redis_server.url)
    findings = found(store)
    places = [f"Redis 127.0.0.1:{redis_server.port}/0", "the memory of this process"]
    if tier == "shared":
        places[1] = f"this host, in {path}"
        assert findings["local tier"] == Finding("local tier", OK, f"one for all workers of this host, in {path}")
    else:
        assert findings["local tier"].level is NOTE
        assert "Set IDEMPOTENCY_LOCAL_TIER to 'shared'" in findings["local tier"].text
    assert findings["store"].text == ", and before it ".join(places)
    assert [name for name, _ in tiers(store)] == places
    assert store.report().in_memory_size == 0, "nothing is left behind"


@pytest.mark.redis
def test_a_file_that_cannot_be_used_is_a_failure(redis_server: RedisProcess, opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "records"
    store = opened(Settings(local_tier="shared", shared_path=path), REDIS_URL=redis_server.url)
    path.write_bytes(b"no database" * 1000)
    path.chmod(0o600)
    assert levels(found(store)) == {"persistence": WARNING, "local tier": FAILURE}


def test_the_file_of_a_host_can_be_the_whole_store(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "records"
    findings = found(opened(Settings(local_tier="shared", shared_path=path)))
    assert [*findings] == ["store", "trial"]
    assert levels(findings) == {}
    assert str(path) in findings["store"].text


@pytest.mark.redis
def test_each_tier_tells_how_long_it_keeps_a_key(redis_server: RedisProcess, opened: Open) -> None:
    store = opened(Settings(local_tier="memory"), REDIS_URL=redis_server.url)
    assert [milliseconds_left(tier, KEY) for _, tier in tiers(store)] == [0, 0]
    store.claim(claim_of())
    assert all(TTL - 5000 < milliseconds_left(tier, KEY) <= TTL for _, tier in tiers(store))


# --- It does not answer ---------------------------------------------------------------------------------------------


@pytest.mark.redis
def test_a_redis_that_is_not_there_is_one_failure_and_no_more(new_redis: Any, opened: Open) -> None:
    server = new_redis()
    findings = found(opened(REDIS_URL=server.url))
    assert [*findings] == ["store", "connection", "local tier"]
    assert findings["connection"].level is FAILURE
    for part in ("Connection refused", str(server.port), "start it, or mend its address", "IDEMPOTENCY_STORE_TIMEOUT"):
        assert part in findings["connection"].text


@pytest.mark.redis
def test_a_frozen_redis_is_found_out_in_bounded_time(redis_server: RedisProcess, opened: Open) -> None:
    link = Link(redis_server.port)
    try:
        link.freeze()
        quick = Settings(local_tier="memory", store_timeout=0.1)
        began = time.monotonic()
        findings = found(opened(quick, REDIS_URL=f"redis://127.0.0.1:{link.port}"))
        assert time.monotonic() - began < 5
    finally:
        link.close()
    assert levels(findings) == {"connection": FAILURE, "local tier": NOTE}
    assert "which is 0.1 s" in findings["connection"].text


@pytest.mark.redis
@pytest.mark.parametrize("credentials", ["nobody:wrong", ":wrong"])
def test_a_wrong_password_is_told_without_it(redis_server: RedisProcess, opened: Open, credentials: str) -> None:
    url = redis_server.url.replace("redis://", f"redis://{credentials}@")
    connection = found(opened(REDIS_URL=url))["connection"]
    assert connection.level is FAILURE
    assert "mend name, password or rights" in connection.text
    assert "start it" not in connection.text
    assert ":wrong" not in connection.text


@pytest.mark.redis
def test_sentinels_that_are_not_there_are_a_failure(new_sentinel: Callable[..., SentinelSet], opened: Open) -> None:
    config = {name.removeprefix("CACHE_"): value for name, value in sentinel_settings(new_sentinel()).items()}
    assert found(opened(**config))["connection"].level is FAILURE


@pytest.mark.redis
def test_a_redis_that_goes_away_under_examination_is_a_failure_of_the_check(
    redis_server: RedisProcess, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = Link(redis_server.port)

    def cut(nodes: Nodes, clock: Callable[[], float]) -> Finding:
        link.cut()
        return clock_check(nodes, clock)

    clock_check = checks._clock
    monkeypatch.setattr(checks, "_clock", cut)
    try:
        findings = found(opened(REDIS_URL=f"redis://127.0.0.1:{link.port}"))
    finally:
        link.close()
    assert levels(findings) == {"clock": FAILURE, "servers": FAILURE, "rights": FAILURE, "wake-ups": NOTE}


# --- What servers say of themselves ---------------------------------------------------------------------------------

SAID = [
    (["--maxmemory-policy", "allkeys-lru"], "eviction", WARNING, "set maxmemory-policy noeviction"),
    (["--maxmemory-policy", "volatile-ttl"], "eviction", WARNING, "volatile-ttl"),
    ([], "persistence", WARNING, "set appendonly yes"),
    (["--save", "60 1"], "persistence", NOTE, "snapshots alone"),
    (["--appendonly", "yes"], "persistence", OK, "appendonly yes (aof)"),
    (["--appendonly", "yes", "--save", "60 1"], "persistence", OK, "appendonly yes (aof+rdb)"),
    ([], "role", OK, "master"),
    ([], "replicas", OK, "0 connected, IDEMPOTENCY_MIN_REPLICAS is 0"),
]


@pytest.mark.redis
@pytest.mark.parametrize(("options", "check", "level", "said"), SAID)
def test_the_settings_of_a_server_are_weighed(
    new_redis: Callable[..., RedisProcess], opened: Open, options: list[str], check: str, level: Level, said: str
) -> None:
    finding = found(opened(REDIS_URL=new_redis(*options).start().url))[check]
    assert (finding.level, said in finding.text) == (level, True), finding.text


@pytest.mark.redis
def test_a_replica_as_the_place_for_writes_is_a_failure(new_redis: Callable[..., RedisProcess], opened: Open) -> None:
    master = new_redis(persistent=True).start()
    replica = new_redis(persistent=True, replica_of=master).start()
    findings = found(opened(REDIS_URL=replica.url))
    assert levels(findings) == {"role": FAILURE, "trial": FAILURE}
    assert "name the master, or use Sentinel" in findings["role"].text
    assert "READONLY" in findings["trial"].text


@pytest.mark.redis
@pytest.mark.parametrize(("wanted", "level"), [(0, OK), (1, OK), (2, FAILURE)])
def test_the_replicas_that_must_have_a_record_are_counted(
    new_redis: Callable[..., RedisProcess], connect: Connect, wanted: int, level: Level
) -> None:
    master = new_redis(persistent=True).start()
    new_redis(replica_of=master).start()
    with master.client() as client:
        eventually(lambda: client.info("replication").get("slave0", {}).get("state") == "online", within=20)
    wait_ms = 50 if level is FAILURE else 4000
    findings = found(RedisStore(connect(master.port).nodes, min_replicas=wanted, wait_ms=wait_ms))
    assert findings["replicas"].level is level
    assert findings["replicas"].text.startswith(f"1 connected, IDEMPOTENCY_MIN_REPLICAS is {wanted}")
    assert findings["trial"].level is level
    assert f"all {11 if wanted else 10} commands" in findings["rights"].text, "WAIT is one of them where it is used"


@pytest.mark.redis
def test_questions_that_are_forbidden_are_unknown_and_no_failure(
    new_redis: Callable[..., RedisProcess], opened: Open
) -> None:
    user = User("worker", "pw", ["~*", "&*", "+@all", "-info", "-config"])
    findings = found(opened(REDIS_URL=new_redis(user=user).start().user_url))
    unknown = ["version", "eviction", "persistence", "role", "replicas"]
    assert levels(findings) == dict.fromkeys(unknown, NOTE)
    assert all("unknown" in findings[check].text for check in unknown)


VERSIONS = [
    ("6.2.14", OK), ("7.0.15", OK), ("8.10.0", OK), ("10.0", OK), ("6.0.16", WARNING), ("5.0.14", WARNING),
    ("unknown", NOTE),
]  # fmt: skip


@pytest.mark.parametrize(("version", "level"), VERSIONS)
def test_versions_from_6_2_on_are_known_to_work(version: str, level: Level) -> None:
    assert checks._version(Server("here", version, f"Redis {version}"))[0] is level


REPLICAS = [
    (None, 1, True, NOTE), (0, 0, False, OK), (0, 0, True, NOTE), (2, 0, True, NOTE), (2, 1, True, OK),
    (0, 1, False, FAILURE), (1, 2, True, FAILURE),
]  # fmt: skip


@pytest.mark.parametrize(("there", "wanted", "replicated", "level"), REPLICAS)
def test_replicas_matter_where_another_server_may_take_over(
    there: int | None, wanted: int, replicated: bool, level: Level
) -> None:
    assert checks._replicas(Server("here", replicas=there), wanted, replicated)[0] is level


# --- Time -----------------------------------------------------------------------------------------------------------


@pytest.mark.redis
@pytest.mark.parametrize(("offset", "level"), [(0.0, OK), (3.0, NOTE), (-3600.0, NOTE)])
def test_a_clock_that_differs_is_noted(redis_server: RedisProcess, opened: Open, offset: float, level: Level) -> None:
    store = tiers(opened(REDIS_URL=redis_server.url))[0][1]
    findings = examine(store, PREFIX, lambda: time.time() - offset)  # type: ignore[arg-type]
    (clock,) = [finding for finding in findings if finding.check == "clock"]
    assert clock.level is level
    if offset:
        assert clock.text.startswith(f"{offset:+.0f}"[:2])


@pytest.mark.parametrize(("seconds", "level"), [(0.0002, OK), (0.05, OK), (0.07, WARNING), (0.3, WARNING)])
def test_a_round_trip_near_the_timeout_is_a_warning(seconds: float, level: Level) -> None:
    assert round_trip(seconds, 0.25).level is level


# --- Rights ---------------------------------------------------------------------------------------------------------

COMMANDS = ["evalsha", "eval", "time", "set", "get", "setrange", "append", "pttl", "pexpire", "del"]


@pytest.fixture
def as_user(new_redis: Callable[..., RedisProcess], opened: Open) -> Callable[..., dict[str, Finding]]:
    """Examines a server as a user with the fewest rights, and with some more or less of them."""

    def examined(*rules: str) -> dict[str, Finding]:
        user = User("worker", "pw", [*FEWEST_RIGHTS.rules, *rules])
        return found(opened(REDIS_URL=new_redis(user=user, persistent=True).start().user_url))

    return examined


@pytest.mark.redis
def test_every_command_that_a_user_lacks_is_named(as_user: Callable[..., dict[str, Finding]]) -> None:
    findings = as_user(*(f"-{name}" for name in COMMANDS))
    rights = findings["rights"]
    assert rights.level is FAILURE
    assert rights.text == (
        f"the user 'worker' lacks {', '.join(COMMANDS)}; ACL SETUSER worker {' '.join(f'+{each}' for each in COMMANDS)}"
    )
    assert "trial" not in findings, "it would say less"


@pytest.mark.redis
@pytest.mark.parametrize("command", COMMANDS)
def test_a_single_command_that_is_missing_is_found_out(
    as_user: Callable[..., dict[str, Finding]], command: str
) -> None:
    findings = as_user(f"-{command}")
    assert findings["rights"].level is FAILURE
    assert f"+{command}" in findings["rights"].text.split()


@pytest.mark.redis
def test_keys_that_a_user_may_not_touch_are_named(as_user: Callable[..., dict[str, Finding]]) -> None:
    rights = as_user("resetkeys", "~other:*")["rights"]
    assert rights.level is FAILURE
    assert rights.text.endswith("lacks keys that begin with idempotency:; ACL SETUSER worker ~idempotency:*")


@pytest.mark.redis
def test_the_grants_that_are_named_are_the_cure(new_redis: Callable[..., RedisProcess], opened: Open) -> None:
    """Which keys a user may touch shows only when the commands are allowed, hence a second round."""
    user = User("worker", "pw", ["resetchannels", "+ping"])
    server = new_redis(user=user, persistent=True).start()
    with server.client() as client:
        for check in ("rights", "rights", "wake-ups"):
            finding = found(opened(REDIS_URL=server.user_url))[check]
            assert finding.level is not OK
            client.execute_command(*finding.text.rpartition("; ")[2].split())
    findings = found(opened(REDIS_URL=server.user_url))
    assert {findings[check].level for check in ("rights", "trial", "wake-ups")} == {OK}


@pytest.mark.redis
@pytest.mark.parametrize("lacking", ["-publish", "-subscribe", "resetchannels"])
def test_without_pub_sub_waiting_still_works_and_the_note_says_how(
    as_user: Callable[..., dict[str, Finding]], lacking: str
) -> None:
    findings = as_user(lacking)
    assert findings["wake-ups"].level is NOTE
    assert "requests that wait ask again and again instead" in findings["wake-ups"].text
    assert findings["trial"].level is OK, "nothing else suffers"


@pytest.mark.redis
def test_a_message_that_does_not_come_in_time_is_no_wake_up(
    redis_server: RedisProcess, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LISTEN_SECONDS", 0)
    wake_ups = found(opened(REDIS_URL=redis_server.url))["wake-ups"]
    assert (wake_ups.level, wake_ups.text.startswith("nothing was heard")) == (NOTE, True)


@pytest.mark.redis
def test_a_full_redis_fails_the_trial(new_redis: Callable[..., RedisProcess], opened: Open) -> None:
    server = new_redis(persistent=True).start()
    with server.client() as client:
        client.config_set("maxmemory", 1)
        findings = found(opened(REDIS_URL=server.url))
        client.config_set("maxmemory", 0)
    assert levels(findings) == {"trial": FAILURE}
    assert "raise maxmemory" in findings["trial"].text


# --- Findings -------------------------------------------------------------------------------------------------------


def test_servers_that_are_alike_have_one_finding_and_others_one_each() -> None:
    assert per_server("role", {"a": (OK, "master")}) == [Finding("role", OK, "master")]
    assert per_server("role", {"a": (OK, "master"), "b": (OK, "master")}) == [Finding("role", OK, "each of 2: master")]
    assert per_server("role", {"a": (OK, "master"), "b": (FAILURE, "replica")}) == [
        Finding("role", OK, "a: master"),
        Finding("role", FAILURE, "b: replica"),
    ]
