"""A served model whose runs last as long as a test needs, on any machine."""

from __future__ import annotations

from pathlib import Path

_SLOWER = """

import time

from tgate_export.runtime.model_runner import ModelRunner

_run = ModelRunner.run


def _run_slowly(*arguments):
    time.sleep({seconds})
    return _run(*arguments)


ModelRunner.run = _run_slowly
"""


def slow_down(model: Path, seconds: float) -> None:
    """Let every engine call of a model of a repository take so much longer."""
    file = model / "1" / "model.py"
    file.write_text(file.read_text() + _SLOWER.format(seconds=seconds))
