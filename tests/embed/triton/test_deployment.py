"""The Docker build file and the Kubernetes manifest of the documentation, by their linters."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tgate_export.embed.triton.metrics import FAMILIES

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "triton"


@pytest.mark.parametrize(
    ("linter", "file"),
    [
        (["hadolint"], "Dockerfile"),
        (["kubernetes-validate", "--strict"], "kubernetes.yaml"),
    ],
)
def test_linters_find_nothing(linter: list[str], file: str) -> None:
    if shutil.which(linter[0]) is None:
        pytest.skip(f"{linter[0]} is not installed")
    run = subprocess.run([*linter, FOLDER / file], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_autoscaler_reads_a_metric_that_there_is() -> None:
    text = (FOLDER / "kubernetes.yaml").read_text()
    assert "metric: {name: tgate_queue_length}" in text
    assert FAMILIES["tgate_queue_length"][0] == "GAUGE"
