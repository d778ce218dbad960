"""Files that follow from others are as they would be written now."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.generated import GENERATED


@pytest.mark.parametrize("file", GENERATED, ids=lambda file: file.name)
def test_is_current(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == GENERATED[file](), "run python scripts/generated.py"
