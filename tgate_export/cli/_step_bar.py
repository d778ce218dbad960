"""A progress bar over the steps of a run."""

from __future__ import annotations

from typing import Any

from tgate_export.cli._console import stderr


class StepBar:
    """A progress bar over the denoising steps on stderr."""

    def __enter__(self) -> StepBar:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        console = stderr()
        self._bar = Progress(
            TextColumn("{task.description:>11}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._bar.start()
        self._task = self._bar.add_task("loading", total=None)
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def update(self, info: Any) -> None:
        """Show a step; see `StepInfo`."""
        self._bar.update(
            self._task, description=info.phase, completed=info.step + 1, total=info.evaluations
        )
