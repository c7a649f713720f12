"""A process that forks in the middle of its work: its children share neither locks nor connections with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..servers.standalone import RedisProcess

pytestmark = pytest.mark.redis
ROOT = Path(__file__).parents[2]
CHILDREN = 40


def test_no_child_of_a_busy_process_stands_still(redis_server: RedisProcess) -> None:
    command = [sys.executable, "-W", "error", "-m", "tests.stores.forking", str(redis_server.port), str(CHILDREN)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.strip() == str({0: CHILDREN}), done.stderr
