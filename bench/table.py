"""Statistics and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

Cell = str | float | None


def median(times: Sequence[float]) -> float:
    """The median."""
    return statistics.median(times)


def p99(times: Sequence[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(times, n=100)[98]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table. The first column is text, the others are numbers; None leaves a cell empty."""
    ruler = ["---", *("---:" for _ in heads[1:])]
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (heads, ruler, *rows))


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2f}"
