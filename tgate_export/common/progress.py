"""How long work says where it is; the command line shows it, everything else ignores it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tgate_export.common.hints import Call


class Progress:
    """Stages of long work. This one is silent."""

    @contextlib.contextmanager
    def stage(self, label: str) -> Iterator[None]:
        """Mark the block as one stage."""
        del label
        yield

    def advance(self, done: int, total: int) -> None:
        """Report how far the current stage is."""

    def note(self, *text: str | Call) -> None:
        """Report something that the user should know, in parts, as a hint; see `TGateError`."""
