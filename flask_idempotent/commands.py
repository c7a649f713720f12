"""The place of ``flask idempotency`` among an app's commands: what is behind it is imported when it is called."""

from __future__ import annotations

from typing import Final

import click
from flask import Flask

NAME: Final = "idempotency"


class _Commands(click.Group):
    """Knows its commands by their module, which a worker never needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See :class:`click.Group`."""
        return _loaded().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See :class:`click.Group`."""
        return _loaded().get_command(ctx, cmd_name)


def register(app: Flask) -> None:
    """Give an app the commands, unless it has others by that name."""
    group = _Commands(NAME, help="Look at idempotency records, and at the store they are in.")
    app.cli.commands.setdefault(NAME, group)


def _loaded() -> click.Group:
    from .cli import commands

    return commands
