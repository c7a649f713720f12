"""``bench/RESULTS.md``: one section per command, replaced by each run of it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FILE = Path(__file__).with_name("RESULTS.md")
HEAD = """# Results

Written by the commands of `bench/`. Ratios hold on other machines, microseconds do not.
"""


def write(title: str, text: str, *packages: str) -> None:
    """Print a section, and put it in the place of the last one with its title.

    :param packages: distributions whose versions matter.
    """
    section = f"## {title}\n\n{circumstances(*packages)}\n\n{text.strip()}\n"
    print(section)
    old = FILE.read_text() if FILE.exists() else HEAD
    others = [part for part in re.split(r"(?m)^(?=## )", old) if not part.startswith(f"## {title}\n")]
    FILE.write_text("\n".join(part.rstrip() + "\n" for part in [*others, section]))


def circumstances(*packages: str) -> str:
    """When, where and with what."""
    versions = [f"{name} {_version(name)}" for name in ("flask", "werkzeug", "redis", "hiredis", *packages)]
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {_commit()}; {_processor()}, {_cores()} cores, "
        f"{platform.system()} {platform.release()}; Python {platform.python_version()}, {_redis_server()}, "
        f"{', '.join(versions)}; load average {os.getloadavg()[0]:.1f}."
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=FILE.parent).stdout.strip()


def _commit() -> str:
    changed = "+" if _said("git", "status", "--porcelain", "--", "../flask_idempotent") else ""
    return (_said("git", "rev-parse", "--short", "HEAD") or "unknown") + changed


def _redis_server() -> str:
    found = re.search(r"v=(\S+)", _said("redis-server", "--version"))
    return f"redis-server {found[1]}" if found else "redis-server unknown"


def _processor() -> str:
    found = re.search(r"(?m)^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _cores() -> int:
    return len(re.findall(r"(?m)^processor\s*:", Path("/proc/cpuinfo").read_text()))
