"""What `bench` and `probe` share: paths checked first, progress, commands, files at the end."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_export.cli._console import stderr
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.user_cache import write_whole

if TYPE_CHECKING:
    from rich.console import Console

    from tgate_export.bench.rows import RowSpec
    from tgate_export.bench.tables import Table
    from tgate_export.runtime.pipeline import TGatePipeline


def check_reports(paths: dict[str, Path | None]) -> None:
    """Find out before measuring and not after that a report cannot be written.

    Args:
        paths: by option.

    Raises:
        InvalidRequestError: names the option and the path.
    """
    given = {option: path for option, path in paths.items() if path is not None}
    for option, path in given.items():
        folder = path.parent
        if not folder.is_dir():
            raise InvalidRequestError(f"{option} {path}: the folder {folder} does not exist")
        if path.is_dir():
            raise InvalidRequestError(f"{option} {path} is a folder: name a file in it")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise InvalidRequestError(f"{option} {path} cannot be written: choose another place")
    if len({path.resolve() for path in given.values()}) < len(given):
        raise InvalidRequestError(f"{' and '.join(given)} name the same file")


def write_report(path: Path, text: str) -> None:
    """Write a report, and say so.

    Raises:
        TGateError: the file cannot be written.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise TGateError(f"cannot write {path}: {error.strerror or error}") from error
    stderr().print(f"Wrote {path}", soft_wrap=True)


def generate_command(
    pipeline: TGatePipeline, prompt: str, scheduler: str | None, row: RowSpec
) -> str:
    """Return the command that generates as a row does: what it sets, and the bundle does not."""
    call = row.call()
    options = ["--steps", str(call.pop("num_inference_steps"))]
    options += ["--gate-step", str(call.pop("gate_step"))]
    defaults = dict(pipeline.manifest.defaults)
    for name, value in call.items():
        if value != defaults.get(name):
            options += [f"--{name.replace('_', '-')}", f"{value:g}"]
    if scheduler and scheduler != pipeline.manifest.defaults.scheduler:
        options += ["--scheduler", scheduler]
    path = str(_relative(pipeline.bundle.path))
    return shlex.join(["tgate-export", "generate", path, "--prompt", prompt, *options])


def print_table(console: Console, content: Table) -> None:
    """Print a table for people; where nobody looks it is wide enough for a file."""
    from rich.table import Table as Grid

    if not console.is_terminal:
        console.width = 160
    grid = Grid(title=content.title, title_justify="left",
                caption=content.note, caption_justify="left")  # fmt: skip
    for index, column in enumerate(content.columns):
        grid.add_column(column, justify="right" if index else "left")
    for cells in content.rows:
        grid.add_row(*cells)
    console.print(grid)


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr; yields what to call with a label, calls done and in all."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr()
    with Progress(
        TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("loading", total=None)

        def advance(label: str, done: int, total: int) -> None:
            bar.update(task, description=label, completed=done, total=total)

        yield advance


def _relative(path: Path) -> Path:
    """Return a path as one would type it here: without the folders of the machine, if it is below.

    Reports are passed on.
    """
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
