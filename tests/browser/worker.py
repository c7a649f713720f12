"""The shop in a process of its own, for the tests that kill it.

    python -m tests.browser.worker PORT '{"SQLALCHEMY_DATABASE_URI": "sqlite:////…", "STRIPE_API_BASE": "http://…"}'

prints its port, and serves until it is killed.
"""

from __future__ import annotations

import json
import sys
import threading

from example_app import create_app
from example_app.serving import Server

if __name__ == "__main__":
    server = Server(port=int(sys.argv[1]))
    server.start(create_app(json.loads(sys.argv[2])))
    print(server.port, flush=True)
    threading.Event().wait()
