"""Runs the command line as a user does, in this process."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from typing import Any

import pytest

from tgate_export.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left on the terminal, and its exit code."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What a successful command printed, and nothing beside it."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def error(self) -> str:
        """The one line that says why a command failed."""
        assert self.code in (1, 2), self
        assert "Traceback" not in self.out + self.err
        lines = self.err.splitlines()
        if lines[0].startswith("Usage: "):  # click: how to use the command, and the error
            assert self.code == 2
            assert lines[-1].startswith("Error: ")
            return lines[-1]
        assert len(lines) == 1, self.err
        assert lines[0].startswith(("error: ", "Error: ")), self.err
        return lines[0]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run `tgate-export` with these arguments."""
    capsys.readouterr()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, captured.out, captured.err)
