"""Help comes at once: it imports nothing heavy. `models` lists what can be built by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tgate_export
from tests.support.command import run
from tgate_export.cli import COMMANDS
from tgate_export.families.names import NAMED_MODELS

# An interpreter without any of these needs well under 0.3 s; torch alone takes seconds.
SLOW = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "numpy", "rich", "pydantic"}


def loaded(code: str) -> set[str]:
    """Names of the top-level packages that a new interpreter has loaded after `code`."""
    report = "\nimport sys; print(); print(*{name.partition('.')[0] for name in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(Path(tgate_export.__file__).parent.parent)}
    output = subprocess.run(
        [sys.executable, "-c", code + report], check=True, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    return set(output.stdout.splitlines()[-1].split())


def help_of(*arguments: str) -> str:
    return (
        "from tgate_export.cli import main\n"
        f"try:\n    main({[*arguments, '--help']!r})\nexcept SystemExit as end:\n"
        "    assert end.code == 0"
    )


def test_slow_packages_would_be_seen() -> None:
    assert "numpy" in loaded("import numpy")


def test_help_imports_nothing_slow() -> None:
    assert not loaded("import tgate_export.cli") & SLOW
    assert not loaded(help_of()) & SLOW


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_no_framework(command: str) -> None:
    assert not loaded(help_of(command)) & {"torch", "diffusers", "transformers", "onnxruntime"}


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "--help")
    assert result.code == 0
    for name, line in COMMANDS.items():
        assert any(row.split()[:1] == [name] and line in row for row in result.out.splitlines())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert tgate_export.__version__ in run(capsys, "--version").out


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys, "biuld")
    assert result.code == 2
    assert "No such command 'biuld'" in result.error()


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(capsys, "models", "--json").json()
    assert [row["name"] for row in rows] == list(NAMED_MODELS)
    sd15 = next(row for row in rows if row["name"] == "sd15")
    assert sd15["denoiser_parameters"] == 859_520_964  # of the published weights
    assert sd15["defaults"]["gate_step"] == 10
    # 4.13 GB were built, and the VAE's encoder, which was not, has 34 M parameters (docs/build.md).
    assert sd15["build"]["bundle_bytes"] == pytest.approx(4.13e9 + 4 * 34.2e6, rel=0.01)
    assert sd15["build"]["download_bytes"] == sd15["build"]["bundle_bytes"]
    assert sd15["build"]["memory_bytes"] == pytest.approx(7.1 * 2**30, rel=0.1)
    assert rows[0]["build"]["download_bytes"] == 0  # of `shapes`, which is packaged
    table = run(capsys, "models")
    assert table.code == 0
    assert all(f"{name} " in table.out for name in NAMED_MODELS)
