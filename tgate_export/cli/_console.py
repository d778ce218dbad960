"""What commands share on the terminal: stages with a spinner, parameter types, JSON."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import click
import rich.progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.segment import Segment

from tgate_export.bundle.manifest import Range
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import TGateError, printable
from tgate_export.common.hints import Call, worded
from tgate_export.common.install import pip_install
from tgate_export.common.progress import Progress


def print_json(content: Any) -> None:
    """Write machine-readable output to stdout."""
    click.echo(json.dumps(content, indent=1))


class PlainConsole(Console):
    """A console that shows text as it is: no markup, and no control characters in it.

    Names, prompts and paths may hold [brackets], :colons: and what a terminal obeys.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield what is shown; see `Console.render`."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = map(printable, segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


def stdout() -> Console:
    """Return the console for results that people read."""
    return PlainConsole()


def stderr() -> Console:
    """Return the console for everything that is not the result."""
    return PlainConsole(stderr=True)


def next_commands(title: str, *commands: Sequence[object]) -> None:
    """Print commands as a shell reads them, one a line."""
    lines = [f"  {shlex.join(map(str, words))}" for words in commands]
    stderr().print("\n".join([f"{title}:", *lines]), soft_wrap=True)


def spinner(label: str) -> contextlib.AbstractContextManager[object]:
    """Show that something is going on; nothing where no person looks."""
    console = stderr()
    return console.status(label) if console.is_terminal else contextlib.nullcontext()


class RichProgress(Progress):
    """Shows the stages of long work on stderr: a spinner now, a line with the seconds after."""

    def __init__(self) -> None:
        self._console = stderr()
        self._bar: rich.progress.Progress | None = None

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """Mark the block as one stage."""
        started = time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
        )
        with rich.progress.Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        ) as self._bar:
            self._bar.add_task(label, total=None)
            yield
        self._bar = None
        self._console.print(f"  {label:<34} {time.perf_counter() - started:6.1f} s")

    def advance(self, done: int, total: int) -> None:
        """Report how far the current stage is."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def note(self, *text: str | Call) -> None:
        """Report something that the user should know."""
        self._console.print(f"  note: {worded(text, on_command_line)}", soft_wrap=True)


@contextlib.contextmanager
def readable_warnings() -> Iterator[None]:
    """Print warnings as one line each, without a source line."""
    console = stderr()

    def show(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
        console.print(f"warning: {message}", soft_wrap=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def parse_range(text: str, what: str) -> Range:
    """Read `N` or `MIN:OPT:MAX`."""
    parts = text.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise click.UsageError(
            f"{what} {text!r} is not a whole number or MIN:OPT:MAX in rising order"
        )
    return Range(min=numbers[0], opt=numbers[1], max=numbers[2])


def parse_size(text: str) -> tuple[Range, Range]:
    """Read `WxH` or `WxH:WxH:WxH` as width and height ranges; `N` is `NxN`."""
    sides = [entry.lower().split("x") for entry in text.split(":")]
    sides = [side * 2 if len(side) == 1 else side for side in sides]
    if len(sides) not in (1, 3) or any(len(side) != 2 for side in sides):
        raise click.UsageError(
            f"--size {text!r} is not WxH, or N for NxN, or WxH:WxH:WxH for a dynamic size"
        )
    widths, heights = (":".join(side[axis] for side in sides) for axis in (0, 1))
    return parse_range(widths, "--size: width"), parse_range(heights, "--size: height")


def require_export_extra() -> None:
    """Say what to install, before anything is downloaded.

    Raises:
        TGateError: a package of the `export` extra is missing.
    """
    packages = (
        "torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
    )  # fmt: skip
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise TGateError(f"building needs {', '.join(missing)}: {pip_install('export', 'cpu')}")


def megabytes(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
