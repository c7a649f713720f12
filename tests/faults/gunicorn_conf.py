"""How gunicorn serves the app; what differs from host to host is on its command line."""

from __future__ import annotations

import ctypes
import signal
from typing import Any

PR_SET_PDEATHSIG = 1

timeout = 120  # a worker that a test stops is the test's to kill
graceful_timeout = 1
keepalive = 60
wsgi_app = "tests.faults.app:create()"


def post_fork(_server: Any, _worker: Any) -> None:
    """A worker dies with its master, a stopped one as well: whoever ends the master has ended all."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
