"""The one request that everything is measured with, and the view that answers it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

ANSWER: Final = {"order": "y" * 285}  # 300 bytes out

Send = Callable[[str], bytes]  # sends the request with a key, returns the body of the answer
BodyOf = Callable[[str], bytes]  # the body that goes with a key; no two requests of real clients are the same


class View:
    """Looks at the request's JSON, gives the same answer each time, and counts how often it ran.

    :param answer: what it gives.
    """

    def __init__(self, answer: dict[str, Any] = ANSWER) -> None:
        self.runs = 0
        self._answer = answer

    def __call__(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run once more.

        :param order: the request's body, parsed: by the view where the guard is around it, as the bare view does.
        """
        if not order["items"]:
            raise ValueError("an empty order")
        self.runs += 1
        return self._answer


def body(key: str) -> bytes:
    """200 bytes."""
    return b'{"ref": "%s"%s' % (key.encode(), _REST)


_REST: Final = b', "items": ["%s"]}' % (b"x" * 138)


def key(n: int) -> str:
    """The key of round ``n``, as long as a UUID."""
    return f"8e03978e-40d5-43dd-bc93-{n & 0xFFFFFFFFFFFF:012x}"


def orders(size: int) -> dict[str, Any]:
    """Something like a list of orders, of about so many bytes as JSON."""
    chance, items = random.Random(0), []
    for row in range(max(size // 100, 1)):
        words = chance.sample(("mug", "pen", "kettle", "lamp", "blanket", "notebook"), 3)
        items.append({"row": row, "sku": f"{chance.getrandbits(64):x}", "price": row + 0.25, "tags": words})
    return {"items": items}
