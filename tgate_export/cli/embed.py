"""`tgate-export embed`: each of its commands is one file, `embed_<name>.py`."""

from __future__ import annotations

import click

from tgate_export.cli._lazy import lazy_group

COMMANDS = {
    "cpp": "Write a C++ project that generates images, without Python.",
    "triton": "Serve a bundle with Triton Inference Server.",
}


@click.group(name="embed", cls=lazy_group(COMMANDS, "tgate_export.cli.embed_"))
def command() -> None:
    """Turn a bundle into something that serves it, or into a program."""
