"""Options of what servers take on, whatever they speak; see `BatchingOptions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--max-batch",
        type=int,
        help="Images in one engine call. Default: the largest batch of the bundle.",
    ),
    click.option(
        "--max-in-flight",
        type=int,
        help="Images that have begun, and hold memory for latents and caches. Default: four "
        "batches.",
    ),
    click.option(
        "--max-pending",
        type=int,
        default=128,
        show_default=True,
        help="Images accepted and not yet done, waiting ones included; more are refused.",
    ),
    click.option(
        "--call-target",
        type=float,
        metavar="SECONDS",
        help="Keep batches small enough for an engine call to take no longer. Default: no bound.",
    ),
)


def batching_options(function: F) -> F:
    """Give a command the options of one model's batcher."""
    for decorate in reversed(_OPTIONS):
        function = decorate(function)
    return function


def max_images_option(default: int) -> Callable[[F], F]:
    """Give a command the option of what one request may ask for."""
    return click.option(
        "--max-images",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="Images of one request.",
    )
