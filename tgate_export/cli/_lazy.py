"""Groups whose commands are imported when they are run, so that help answers at once."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click


def lazy_group(commands: Mapping[str, str], prefix: str) -> type[click.Group]:
    """Return the class of a group.

    Args:
        commands: help line by name, in order.
        prefix: the module of a command is this and its name; it has the command as `command`.
    """

    class LazyGroup(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return list(commands)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in commands:
                return None
            command: click.Command = importlib.import_module(prefix + cmd_name).command
            return command

        def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            with formatter.section("Commands"):
                formatter.write_dl(list(commands.items()))

    return LazyGroup
