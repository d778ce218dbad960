"""Options of commands that build: a checkpoint in one file, and files that change the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tgate_export.cli._types import EmbeddingFile, LoraFile


def file_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config`, `--vae`, `--lora` and `--embedding` to a command that builds."""
    for option in (
        click.option(
            "--embedding",
            "embeddings",
            type=EmbeddingFile(),
            multiple=True,
            metavar="FILE[:TOKEN]",
            help="Add a textual inversion (.safetensors): TOKEN in a prompt, the file's own or its "
            "name without, stands for its vectors. Repeat for several.",
        ),
        click.option(
            "--lora",
            "loras",
            type=LoraFile(),
            multiple=True,
            metavar="FILE[:SCALE]",
            help="Build the model with the weights that this LoRA (.safetensors) makes of its own; "
            "SCALE, 1 without, is what the change is multiplied by. Repeat for several.",
        ),
        click.option(
            "--vae",
            type=click.Path(),
            metavar="FILE|DIR",
            help="Build this VAE in place of the model's own: a .safetensors file or a folder. It "
            "may be a TAESD, which is smaller and faster.",
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
