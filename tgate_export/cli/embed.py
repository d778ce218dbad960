"""`tgate-export embed`: a group whose commands are `embed_<name>.py`."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "triton": "Serve a bundle with Triton Inference Server.",
}


class _Targets(click.Group):
    """Imports a command's module when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"tgate_export.cli.embed_{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(name="embed", cls=_Targets)
def command() -> None:
    """Turn a bundle into something that serves it, or into a program."""
