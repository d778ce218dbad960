"""Options that choose a backend and how it runs: their help is made of what the backends specify.

It is made when it is shown, to which alone it imports the backends' modules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tgate_export.cli._types import BackendName

if TYPE_CHECKING:
    from tgate_export.runtime.backends.base import BackendOptions, RunPrecision

F = TypeVar("F", bound=Callable[..., Any])

BACKENDS = "{backends}"
"""Stands in the help of a `BackendOption` for the list of backends."""


class BackendOption(click.Option):
    """An option that names a backend."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option, and its help with the list of backends."""
        from tgate_export.runtime.backends import AUTO, specs

        listed = [f"{AUTO} (the fastest that works here)"]
        for summary, group in itertools.groupby(specs().values(), lambda spec: spec.summary):
            listed.append(f"{', '.join(spec.name for spec in group)} ({summary})")
        found = super().get_help_record(ctx)
        return found and (found[0], found[1].replace(BACKENDS, "; ".join(listed)))


class RunOption(click.Option):
    """An option of the name of a field of `BackendOptions`, whose help it shows."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the option, and the field's help with the backends that take it."""
        from tgate_export.runtime.backends import specs
        from tgate_export.runtime.backends.base import BackendOptions

        (field,) = (field for field in fields(BackendOptions) if field.name == self.name)
        takers = [spec.name for spec in specs().values() if field.name in spec.options]
        found = super().get_help_record(ctx)
        text = f"{field.metadata['help']} For {', '.join(takers)}. {found[1] if found else ''}"
        return found and (found[0], text.strip())


def backend_option(function: F) -> F:
    """Give a command the option of the backend that it runs."""
    return click.option(
        "--backend",
        cls=BackendOption,
        type=BackendName(),
        default="auto",
        show_default=True,
        help=f"What runs the graphs: {BACKENDS}.",
    )(function)


def backend_options(
    no_cuda_graphs: bool,
    weight_streaming_budget: float | None,
    precision: RunPrecision | None,
    threads: int | None,
) -> BackendOptions:
    """Return the options as backends take them; the budget is in GiB."""
    from tgate_export.runtime.backends.base import BackendOptions

    budget = weight_streaming_budget
    return BackendOptions(
        cuda_graphs=not no_cuda_graphs,
        weight_streaming_budget=None if budget is None else int(budget * 2**30),
        precision=precision,
        threads=threads,
    )
