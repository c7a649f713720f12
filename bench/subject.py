"""What is measured: one guard with one store, as its first run and as its replay."""

from __future__ import annotations

from dataclasses import dataclass

from .requests import Send, View, key

REPLAYED = key(-1)  # the key that every replay uses


@dataclass(frozen=True)
class Subject:
    """One guard around the one view.

    :param name: for the table.
    :param interface: ``"WSGI"`` or ``"ASGI"``: which bare view it is compared with.
    :param send: sends the request to the guarded view.
    :param view: the view behind it.
    :param first_target: the ratio to one GET that a first run should keep within; None where nothing is aimed at.
    :param replay_target: likewise for a replay.
    """

    name: str
    interface: str
    send: Send
    view: View
    first_target: float | None = None
    replay_target: float | None = None

    def check(self) -> None:
        """See that the guard guards: a number that compares something broken is worth nothing.

        :raises RuntimeError: the view did not run once for two requests with one key, or the answers differ.
        """
        before = self.view.runs
        first, again = self.send(REPLAYED), self.send(REPLAYED)
        runs = self.view.runs - before
        if runs != 1 or first != again:
            raise RuntimeError(f"{self.name} ran the view {runs} times; its answers: {first!r}, {again!r}")
