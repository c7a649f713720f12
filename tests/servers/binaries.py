"""Which servers there are, and where their programs lie."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path
from typing import Final

SYSTEM: Final = "system"  # the distribution's redis-server


def binary(name: str = SYSTEM) -> Path:
    """The program of a server."""
    assert name == SYSTEM, name
    # Not a server that a Python package has put beside the interpreter.
    ours = sysconfig.get_path("scripts")
    elsewhere = os.pathsep.join(each for each in os.get_exec_path() if each != ours)
    found = shutil.which("redis-server", path=elsewhere)
    assert found, "redis-server is missing: run `make test`, which installs it"
    return Path(found)
