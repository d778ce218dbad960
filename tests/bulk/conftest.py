"""A folder with a file of prompts, and runs of it with the tiny bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tgate_export.bulk.settings import BulkSettings


@pytest.fixture
def settings(tmp_path: Path) -> BulkSettings:
    """Settings of a run below the test's folder; of no bundle."""
    return BulkSettings(
        bundle=tmp_path / "bundle", prompts=tmp_path / "prompts.jsonl", image_folder=tmp_path,
        out=tmp_path / "out", seed=100,
    )  # fmt: skip


@pytest.fixture
def write_lines(settings: BulkSettings) -> Callable[..., Path]:
    """Write lines of prompts, objects as JSON and texts as they are."""

    def write(*lines: dict[str, Any] | str) -> Path:
        texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        settings.prompts.write_text("".join(f"{text}\n" for text in texts))
        return settings.prompts

    return write
