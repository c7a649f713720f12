"""What an examination of a store finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How much a finding matters."""

    OK = 0
    NOTE = 1  # as it should be, or not to be known; worth a thought
    WARNING = 2  # works, and may lose records or run something twice
    FAILURE = 3  # requests with a key are refused, or run unprotected


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a diagnosis.

    :param check: what was looked at, such as ``"clock"``.
    :param level: how much it matters.
    :param text: what was found, with the remedy where one is needed; no password, no key and no body.
    """

    check: str
    level: Level
    text: str


def per_server(check: str, found: Mapping[str, tuple[Level, str]]) -> list[Finding]:
    """Findings about several servers: one where they are all alike, else one for each with its name."""
    if len(set(found.values())) == 1:
        level, text = next(iter(found.values()))
        return [Finding(check, level, text if len(found) == 1 else f"each of {len(found)}: {text}")]
    return [Finding(check, level, f"{name}: {text}") for name, (level, text) in found.items()]
