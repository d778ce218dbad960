"""A folder with all files of a Stable Diffusion pipeline, in which nothing is large."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.small_folder import save_files


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """The files of a Stable Diffusion pipeline; its weights are valid files of no model."""
    folder = tmp_path / "mine"
    save_files(folder)
    return folder
