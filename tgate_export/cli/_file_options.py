"""Options for a model that is a checkpoint in one file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` and `--vae` to a command that builds."""
    for option in (
        click.option(
            "--vae",
            type=click.Path(),
            metavar="FILE",
            help="For a FILE: build the VAE of this other .safetensors file.",
        ),
        click.option(
            "--config",
            metavar="NAME|DIR",
            help="For a FILE: take the configurations of this name or diffusers folder as they "
            "are, in place of those that the file's keys and shapes ask for. A folder's weights "
            "stand in for components that the file lacks.",
        ),
    ):
        command = option(command)
    return command
