"""Programs that find fault with files of the documentation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

LINTERS = {"Dockerfile": ("hadolint",), ".yaml": ("kubernetes-validate", "--strict")}


def assert_linted(file: Path) -> None:
    """Let the program that knows a file find nothing; skip the test where it is not installed."""
    linter = LINTERS[file.suffix or file.name]
    if shutil.which(linter[0]) is None:
        pytest.skip(f"{linter[0]} is not installed")
    run = subprocess.run([*linter, file], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
