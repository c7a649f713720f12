"""How the guard scales: workers, stored keys, requests on one key, large bodies."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.servers.standalone import RedisProcess

from ..results import write
from . import bodies, contention, limit, records, throughput

TITLE = "Scale"


def main() -> None:
    """Start a Redis, measure, write the section."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of everything: a minute instead of five")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as directory:
        server = RedisProcess(Path(directory)).start()
        try:
            parts = {
                "Requests per second": throughput.section(server, 1 if quick else 4),
                "One Redis at its limit": limit.section(server, 20 if quick else 100),
                "Bytes per record": records.sizes(server),
                "Number of records": records.counts(server, 10**4 if quick else 10**6, 200),
                "One key": contention.section(server),
                "Large bodies": bodies.section(server, 200),
            }
        finally:
            server.stop()
    write(TITLE, "\n\n".join(f"### {title}\n\n{text.strip()}" for title, text in parts.items()), "gunicorn")


if __name__ == "__main__":
    main()
