"""Where a host's records may be, and which files are taken for them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_idempotent.config import ConfigurationError
from flask_idempotent.core.store import Claimed, StoreError, StoreFull
from flask_idempotent.stores import hostfile
from flask_idempotent.stores.hostfile import check_path, default_path
from flask_idempotent.stores.shared import SharedStore

from .making import KEY, TTL, claim_of

Make = Callable[..., SharedStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the stores of the ``shared`` fixture have their file."""
    return tmp_path / "shared" / "records.sqlite"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def refused(make: Make, path: Path, why: str) -> None:
    """Both at start-up and at the first request."""
    with pytest.raises(ConfigurationError, match=why):
        check_path(path)
    with pytest.raises(StoreError, match=why) as caught:
        make().claim(claim_of())
    assert caught.value.outage is False


# Places


def test_nothing_is_made_nor_opened_before_there_is_a_request(shared: Make, path: Path) -> None:
    store = shared()
    check_path(path)
    assert not path.parent.exists()
    assert store.claim(claim_of()) == Claimed(1)
    assert path.exists()


@pytest.mark.usefixtures("open_umask")
def test_what_is_made_is_for_its_owner_alone(shared: Make, path: Path) -> None:
    shared().claim(claim_of())
    assert mode(path.parent) == 0o700
    assert {mode(part) for part in path.parent.iterdir()} == {0o600}
    assert {part.name for part in path.parent.iterdir()} >= {"records.sqlite", "records.sqlite-wal"}


def test_a_place_of_ones_own_is_taken_as_it_is(shared: Make, path: Path) -> None:
    path.parent.mkdir(mode=0o755)
    path.touch(mode=0o644)
    check_path(path)
    assert shared().claim(claim_of()) == Claimed(1)


@pytest.mark.parametrize("rights", [0o770, 0o707, 0o1777])
def test_a_directory_in_which_others_may_write_is_refused(shared: Make, path: Path, rights: int) -> None:
    path.parent.mkdir()
    path.parent.chmod(rights)
    refused(shared, path, f"can be written by other users .mode {rights:o}.*IDEMPOTENCY_SHARED_PATH")
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("rights", [0o660, 0o606])
def test_a_file_that_others_may_write_is_refused(shared: Make, path: Path, rights: int) -> None:
    path.parent.mkdir()
    path.touch()
    path.chmod(rights)
    refused(shared, path, f"can be written by other users .mode {rights:o}")
    assert path.stat().st_size == 0


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_belongs_to_another_user_is_refused(
    shared: Make, path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.touch(mode=0o600)
    of_another = path.parent if what == "directory" else path
    real = os.lstat

    def lstat(place: Path) -> os.stat_result:
        status = list(real(place))
        if Path(place) == of_another:
            status[stat.ST_UID] = 4711
        return os.stat_result(status)

    monkeypatch.setattr(os, "lstat", lstat)
    refused(shared, path, rf"{of_another} belongs to another user .uid 4711")


@pytest.mark.parametrize("what", ["directory", "file"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_symbolic_link_is_refused(shared: Make, path: Path, tmp_path: Path, what: str, dangling: bool) -> None:
    target = tmp_path / "elsewhere"
    if what == "directory":
        path.parent.symlink_to(target)
        if not dangling:
            target.mkdir(mode=0o700)
    else:
        path.parent.mkdir()
        path.symlink_to(target)
        if not dangling:
            target.touch(mode=0o600)
    with pytest.raises(ConfigurationError, match="is a symbolic link"):
        check_path(path)
    with pytest.raises(StoreError):
        shared().claim(claim_of())
    assert not target.exists() or target.is_dir() or target.stat().st_size == 0


def test_a_directory_in_place_of_the_file_is_refused(shared: Make, path: Path) -> None:
    path.mkdir(parents=True)
    refused(shared, path, "is not what it should be")


def test_a_place_that_cannot_be_made_is_an_error_that_names_the_setting(shared: Make, path: Path) -> None:
    path.parent.touch(mode=0o600)
    with pytest.raises(ConfigurationError, match="IDEMPOTENCY_SHARED_PATH"):
        check_path(path)
    with pytest.raises(StoreError, match="IDEMPOTENCY_SHARED_PATH"):
        shared().claim(claim_of())


def test_a_place_that_is_not_writable_is_refused_at_start_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ConfigurationError, match=r"not writable.*IDEMPOTENCY_SHARED_PATH"):
        check_path(path)


def test_the_usual_place_is_a_directory_of_the_users_own_in_shared_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = f"flask-idempotency-{os.geteuid()}"
    assert default_path().parent.name == name
    monkeypatch.setattr(hostfile, "_is_tmpfs", lambda _: True)
    monkeypatch.setattr(hostfile, "_SHARED_MEMORY", tmp_path)
    assert default_path() == tmp_path / name / "records.sqlite"


@pytest.mark.parametrize("lacking", ["no shared memory", "it is not writable"])
def test_without_shared_memory_it_is_with_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(hostfile, "_is_tmpfs", lambda _: lacking == "it is not writable")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_path().parent.parent == tmp_path


def test_shared_memory_is_told_from_a_directory_on_disk() -> None:
    mounted = {line.split()[1]: line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()}
    assert hostfile._is_tmpfs(Path("/dev/shm")) is (mounted.get("/dev/shm") == "tmpfs")
    assert not hostfile._is_tmpfs(Path("/nowhere"))


# What is there already


def changed(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


def test_a_file_of_a_later_version_is_refused_and_left_as_it_is(shared: Make, path: Path) -> None:
    store = shared()
    store.set(KEY, b"kept", TTL)
    store.close()
    changed(path, f"PRAGMA user_version={hostfile.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"another version of this library.*end all workers") as caught:
        shared().claim(claim_of())
    assert caught.value.outage is False
    assert path.read_bytes() == before
    changed(path, f"PRAGMA user_version={hostfile.VERSION}")
    assert shared().get(KEY) == b"kept"


def test_a_database_of_something_else_is_refused_and_left_as_it_is(shared: Make, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    changed(path, "CREATE TABLE orders (id)")
    path.chmod(0o600)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is not a file of records: move it away"):
        shared().claim(claim_of())
    assert path.read_bytes() == before


@pytest.mark.parametrize("how", ["no database at all", "a page overwritten"])
def test_a_damaged_file_is_an_error_and_not_silently_an_empty_one(shared: Make, path: Path, how: str) -> None:
    store = shared()
    for number in range(300):
        store.set(f"{KEY}{number}", bytes(300), TTL)
    store.close()
    content = bytearray(path.read_bytes())
    start = 0 if how == "no database at all" else hostfile.PAGE_BYTES
    content[start:] = b"\xaa" * (len(content) - start)
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"is damaged.*move it away") as caught:
            shared().claim(claim_of())
        assert caught.value.outage is False
    assert path.read_bytes() == content


def test_a_damaged_file_from_before_the_machine_was_started_is_made_anew(shared: Make, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"\xaa" * 50_000)
    path.chmod(0o600)
    os.utime(path, (0, time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) - 60))
    assert shared().claim(claim_of()) == Claimed(1)


def test_after_a_reboot_the_records_are_gone(
    shared: Make, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's monotonic clock has begun anew, so nobody can say when they expire."""
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")
    monkeypatch.setattr(hostfile, "_BOOT_ID", boot)
    store = shared()
    store.set(KEY, b"value", TTL)
    store.remember("note", b"value")
    store.owe(claim_of())
    store.close()
    assert shared().get(KEY) == b"value"
    boot.write_text("two\n")
    after = shared()
    assert (after.get(KEY), after.recall("note"), after.owed_count()) == (None, None, 0)
    after.set(KEY, b"new", TTL)
    assert shared().get(KEY) == b"new"


def test_where_the_system_names_no_boot_the_machines_time_counts(
    shared: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfile, "_BOOT_ID", tmp_path / "none")
    store = shared()
    store.set(KEY, b"value", TTL)
    assert shared().get(KEY) == b"value"
    assert abs(store._clock() - time.time() * 1000) < 5000
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + TTL / 1000)
    assert store.get(KEY) is None


def test_where_little_room_is_left_the_file_takes_no_more_than_that(
    shared: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log cannot be written back to, for want of room, could not even be swept."""
    real = os.statvfs
    left = hostfile.LOG_BYTES + 500_000

    def statvfs(place: Path) -> os.statvfs_result:
        status = list(real(place))
        status[1], status[4] = 1, left  # f_frsize, f_bavail
        return os.statvfs_result(status)

    monkeypatch.setattr(os, "statvfs", statvfs)
    store = shared()
    with contextlib.suppress(StoreFull):
        for number in range(1000):
            store.set(f"{KEY}{number}", bytes(1000), TTL)
    with pytest.raises(StoreFull, match="what its file system has left"):
        store.set(KEY, bytes(500_000), TTL)
    store.close()
    assert 300_000 < path.stat().st_size < 600_000


def test_one_who_stops_while_he_opens_the_file_holds_up_the_others_not_for_ever(
    shared: Make, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostfile, "OPENING_SECONDS", 0.1)
    path.parent.mkdir(mode=0o700)
    stopped = hostfile.HostFile(path, 1 << 20)
    with stopped._alone(), pytest.raises(StoreError, match="being opened by another process"):
        shared().claim(claim_of())
    assert shared().claim(claim_of()) == Claimed(1)
