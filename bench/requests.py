"""The one request that everything is measured with, and the view that answers it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

BODY: Final = json.dumps({"items": ["x" * 184]}).encode()  # 200 bytes in
ANSWER: Final = {"order": "y" * 285}  # 300 bytes out

Send = Callable[[str], bytes]  # sends the request with a key, returns the body of the answer


class View:
    """Gives the same answer each time, and counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self) -> dict[str, str]:
        """Run once more."""
        self.runs += 1
        return ANSWER


def key(n: int) -> str:
    """The key of round ``n``, as long as a UUID."""
    return f"8e03978e-40d5-43dd-bc93-{n & 0xFFFFFFFFFFFF:012x}"
