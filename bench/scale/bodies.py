"""Large bodies, in and out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.servers.standalone import RedisProcess

from .. import floor, ours, wsgi
from ..measure import Call, take_turns
from ..requests import BodyOf, View, key, orders
from ..subject import REPLAYED
from ..table import Cell, markdown, median

KIB = (1, 10, 100, 1000)  # 1,000 KiB and its headers fit into MAX_BODY
HEADS = ("store", "KiB in and out", "bare us", "first run adds us", "x GET", "replay adds us", "x GET")
EXPLANATION = """
JSON of rows with fractions and words, as large in the request as in the answer. Because of the fractions the view
parses once more what was parsed for the fingerprint; the answer is compressed where that pays. A replay neither parses
nor runs the view, so a large one takes less than the bare view does.
"""


def section(server: RedisProcess, rounds: int) -> str:
    """Measure, and make the text."""
    return f"{EXPLANATION}\n{markdown(HEADS, _rows(server, rounds))}"


def _rows(server: RedisProcess, rounds: int) -> Iterator[list[Cell]]:
    stores: dict[str, dict[str, Any]] = {
        "SimpleCache": {"CACHE_TYPE": "SimpleCache"},
        "Redis alone": {
            "CACHE_REDIS_URL": server.url, "LOCAL_TIER": None, "ON_OUTAGE": "reject", "STORE_TIMEOUT": 5,
        },
    }  # fmt: skip
    for kib in KIB:
        document = orders(kib * 1024)
        rest = json.dumps(document).encode()[1:]
        bare = wsgi.bare(View(document), _beginning_with("bare", rest))
        calls: dict[str, Call] = {"GET": floor.redis_py(server), "bare": lambda n, bare=bare: bare(key(n))}  # type: ignore[misc]
        for name, settings in stores.items():
            app = ours.guarded(View(document), f"bodies {kib}", settings | {"MAX_BODY": 2 * len(rest)})
            assert app is not None
            calls |= _calls(name, wsgi.sender(app, _beginning_with(name, rest)))
        times = {name: median(each) for name, each in take_turns(calls, max(rounds // kib, 20)).items()}
        for name in stores:
            first, replay = (times[f"{name}: {kind}"] - times["bare"] for kind in ("first run", "replay"))
            get = times["GET"]
            yield [name, str(kib), times["bare"], first, first / get, replay, replay / get]


def _beginning_with(name: str, rest: bytes) -> BodyOf:
    """A document that no other guard has seen: its first member is a name with the key."""
    return lambda key: b'{"ref": "%s %s", %s' % (name.encode(), key.encode(), rest)


def _calls(name: str, send: wsgi.Send) -> dict[str, Call]:
    return {
        f"{name}: first run": lambda n: send(key(n)),
        f"{name}: replay": lambda _: send(REPLAYED),
    }
