"""How far a bulk run is, for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tgate_export.cli._console import stderr

if TYPE_CHECKING:
    from tgate_export.bulk.run import Tally

_LINE_SECONDS = 30.0  # between lines where no person looks


class BulkProgress:
    """Shows on stderr how far a run is: a bar, or a line now and then where no person looks."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from tgate_export.bulk.pace import Pace

        self._console = stderr()
        self._pace = Pace()
        self._tally: Tally | None = None
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("images"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[estimate]}", markup=False), console=self._console,
            transient=True, disable=not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, estimate="checking prompts")

    def __enter__(self) -> BulkProgress:
        self._bar.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._bar.stop()

    def report(self, tally: Tally) -> None:
        """Show how far it is."""
        if self._tally is None and tally.before:
            self._console.print(f"{tally.before:,} of {tally.lines:,} images are there already")
        self._tally = tally
        self._pace.note(tally.made)
        estimate, done = self._estimate(tally), tally.before + tally.made
        self._bar.update(self._task, total=tally.lines, completed=done, estimate=estimate)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= _LINE_SECONDS:
            self._said = now
            self._console.print(f"{done:,} of {tally.lines:,} images{estimate and ', '}{estimate}")

    def interrupted(self) -> None:
        """Say how to go on."""
        if self._tally is not None:
            done = self._tally.before + self._tally.made
            self._console.print(
                f"{done:,} of {self._tally.lines:,} images are done: the same command goes on from "
                "there"
            )

    def _estimate(self, tally: Tally) -> str:
        from tgate_export.bulk.pace import spoken

        failed = f"{tally.failed:,} failed, " if tally.failed else ""
        left = self._pace.left(tally.left)
        if left is None:
            return failed.removesuffix(", ")
        return f"{failed}{self._pace.rate:.3g} a second, about {spoken(left)} left"
