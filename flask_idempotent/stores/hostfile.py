"""The file that the workers of a host share: where it may be, and how it is opened."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import ConfigurationError
from ..core.store import StoreError
from .rows import SCHEMA

VERSION: Final = 1  # of the schema
APPLICATION: Final = 0x49644B79  # marks a SQLite file as ours
PAGE_BYTES: Final = 4096
LOG_PAGES: Final = 500  # after which the write-ahead log is written back
LOG_BYTES: Final = 4 << 20  # what is left for it, and what it shrinks back to
OPENING_SECONDS: Final = 5.0  # to wait for another one who opens the file

Identities = dict[str, tuple[int, int]]  # device and inode, by path

_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
_SIDES: Final = ("-wal", "-shm", "-journal")  # what SQLite keeps beside its file
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

inherited: set[tuple[int, int]] = set()  # files that were open when this process was forked off; see Sessions


def default_path() -> Path:
    """The place of a user's records on this host: in shared memory where there is some, else with temporary files."""
    base = _SHARED_MEMORY if _is_tmpfs(_SHARED_MEMORY) and os.access(_SHARED_MEMORY, os.W_OK) else tempfile.gettempdir()
    return Path(base, f"flask-idempotency-{os.geteuid()}", "records.sqlite")


def check_path(path: Path) -> None:
    """See that records can be kept in a file, before there is a request. Makes and opens nothing.

    :raises ConfigurationError: others could write there, or we cannot.
    """
    if fault := _fault(path):
        raise ConfigurationError([fault])


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection to the file.

    :param connection: in autocommit mode, and without patience.
    :param path: of the file.
    :param identities: device and inode of the file and of what SQLite keeps beside it, by path.
    :param offset: seconds to add to the host's monotonic clock; None to go by the machine's time.
    :param limit_bytes: how large it may grow.
    """

    connection: sqlite3.Connection
    path: str
    identities: Identities
    offset: float | None
    limit_bytes: int


class HostFile:
    """A SQLite file for the records of one host.

    A file of another boot of the machine is replaced by an empty one: its clock has ended, and with it its workers.

    :param path: of the file; its directory is made if it is not there. On a local file system.
    :param limit_bytes: how large it may grow, where its file system has as much.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._abandoned: Identities = {}

    def open(self) -> Opened:
        """Open the file, and make it where there is none.

        :raises StoreError: it cannot be used; the message says why, and what to do.
        """
        try:
            os.makedirs(self.path.parent, mode=0o700, exist_ok=True)
            if fault := _fault(self.path):
                raise StoreError(fault)
            with self._alone():
                return self._open()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be opened: {error.strerror}; see IDEMPOTENCY_SHARED_PATH") from error

    def last_written(self) -> int:
        """When anybody last wrote to the file, in nanoseconds and coarse; 0 when nobody has it open."""
        try:
            return self.path.with_name(self.path.name + "-wal").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def abandon(self, old: Identities) -> bool:
        """Leave a file that was deleted while in use. What is left of it goes, too, so that nobody goes on with a part.

        :param old: what was open.
        :return: False when it has been left before.
        """
        with suppress(OSError), self._alone():
            if identity(self.path) == old[str(self.path)] and _differs(old):
                self._remove()
        news, self._abandoned = old != self._abandoned, old
        return news

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Make all others wait who want to open a file in the directory."""
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        deadline = time.monotonic() + OPENING_SECONDS
        try:
            while not _locked(directory):
                if time.monotonic() > deadline:
                    raise StoreError(f"{self.path} is being opened by another process, which has stopped: end that one")
                time.sleep(0.005)
            yield
        finally:
            os.close(directory)

    def _open(self) -> Opened:
        boot = _boot_id()
        while True:
            with suppress(FileExistsError):  # SQLite's own would be readable for all
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            if identity(self.path) in inherited:
                raise StoreError(f"this process was forked off while its parent was using {self.path}: start it anew")
            connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                made_in, offset = self._set_up(connection, boot)
            except sqlite3.DatabaseError as error:
                connection.close()
                if not is_damage(error) or not self._is_of_another_boot():
                    raise
            except BaseException:
                connection.close()
                raise
            else:
                if made_in == boot:
                    known = identities(str(self.path))
                    return Opened(connection, str(self.path), known, offset if boot else None, self._room())
                connection.close()
            self._remove()

    def _set_up(self, connection: sqlite3.Connection, boot: str) -> tuple[str, float]:
        """Prepare a connection. In which boot of the machine the file was made, and what its clock is ahead by."""
        execute = connection.execute
        execute(f"PRAGMA page_size={PAGE_BYTES}")
        (application,), (version,) = (
            execute("PRAGMA application_id").fetchone(),
            execute("PRAGMA user_version").fetchone(),
        )
        if (application, version) == (0, 0) and not execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                execute(statement)
            execute("INSERT INTO origin VALUES (?, ?)", (boot, time.time() - time.monotonic()))
            execute(f"PRAGMA application_id={APPLICATION}")
            execute(f"PRAGMA user_version={VERSION}")
            execute("COMMIT")
        elif application != APPLICATION:
            raise StoreError(f"{self.path} is not a file of records: move it away, or change IDEMPOTENCY_SHARED_PATH")
        elif version != VERSION:
            raise StoreError(
                f"{self.path} was written by another version of this library (its format is {version}, ours {VERSION}):"
                " end all workers of that version, or give these an IDEMPOTENCY_SHARED_PATH of their own"
            )
        # A write-ahead log is the fastest journal that survives the death of a writer. What is not synced is lost with
        # the machine, and the records of another boot do not count anyway.
        if execute("PRAGMA journal_mode=WAL").fetchone()[0] != "wal":
            raise StoreError(f"{self.path} is on a file system without shared memory: change IDEMPOTENCY_SHARED_PATH")
        for setting in (
            "synchronous=OFF",
            "mmap_size=0",
            "temp_store=MEMORY",
            f"wal_autocheckpoint={LOG_PAGES}",
            f"journal_size_limit={LOG_BYTES}",
        ):
            execute(f"PRAGMA {setting}")
        origin: tuple[str, float] = execute("SELECT boot, ahead FROM origin").fetchone()
        return origin

    def _room(self) -> int:
        """How large the file may grow. A log that cannot be written back for want of room would stop everything."""
        system = os.statvfs(self.path.parent)
        ours = sum(os.stat(part).st_size for part in identities(str(self.path)))
        return min(self.limit_bytes, system.f_bavail * system.f_frsize + ours - LOG_BYTES)

    def _remove(self) -> None:
        for side in ("", *_SIDES):
            self.path.with_name(self.path.name + side).unlink(missing_ok=True)

    def _is_of_another_boot(self) -> bool:
        """Whether a file that cannot be read was last written before the machine was started."""
        if not hasattr(time, "CLOCK_BOOTTIME"):
            return False
        return self.path.stat().st_mtime < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def identities(path: str) -> Identities:
    """The identities of the file and of its log. What else there is beside it comes and goes."""
    return {each: identity(each) for each in (path, path + "-wal", path + "-shm")}


def identity(path: str | Path) -> tuple[int, int]:
    """Device and inode of a file."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _differs(known: Identities) -> bool:
    """Whether a part of the file is gone or has been replaced."""
    try:
        return identities(next(iter(known))) != known
    except FileNotFoundError:
        return True


def is_damage(error: Exception) -> bool:
    """Whether an error means that the file's content is broken."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE


def _boot_id() -> str:
    """What names the present boot of the machine; empty where the system does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _locked(directory: int) -> bool:
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_tmpfs(directory: Path) -> bool:
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(line.split()[1:3] == [str(directory), "tmpfs"] for line in mounts.splitlines())


def _fault(path: Path) -> str | None:
    """Why records must not be kept in a file: somebody else could put their own there."""
    for place, kind in ((path.parent, stat.S_ISDIR), (path, stat.S_ISREG)):
        try:
            status = os.lstat(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{place} cannot be used for records: {error.strerror}; see IDEMPOTENCY_SHARED_PATH"
        if wrong := _wrong(status, kind(status.st_mode)):
            return f"{place} {wrong}; remove it, or choose another IDEMPOTENCY_SHARED_PATH"
    nearest = next(place for place in path.absolute().parents if place.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        return f"{nearest} is not writable for this process, so {path} cannot be made; see IDEMPOTENCY_SHARED_PATH"
    return None


def _wrong(status: os.stat_result, of_its_kind: bool) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not of_its_kind:
        return "is not what it should be: a directory of its own, and a regular file in it"
    if status.st_uid != os.geteuid():
        return f"belongs to another user (uid {status.st_uid})"
    if status.st_mode & _WRITABLE_BY_OTHERS:
        return f"can be written by other users (mode {stat.S_IMODE(status.st_mode):o}; it should be 700, a file 600)"
    return None
