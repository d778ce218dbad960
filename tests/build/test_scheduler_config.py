"""The scheduler's configuration in a bundle is strict JSON, and means what the model's does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import DPMSolverMultistepScheduler

from tests.support import tiny
from tgate_export.build.assemble import _write_scheduler_config
from tgate_export.bundle.sampler_names import SCHEDULER_CONFIG
from tgate_export.common.json_file import parse_json
from tgate_export.families.source import resolve_source


def written(model: Path, staging: Path) -> str:
    staging.mkdir()
    request = SimpleNamespace(source=resolve_source(str(model)))
    _write_scheduler_config(SimpleNamespace(request=request, staging=staging))  # type: ignore[arg-type]
    return (staging / SCHEDULER_CONFIG).read_text()


def test_defaults_that_json_cannot_say(tmp_path: Path) -> None:
    """diffusers saves `lambda_min_clipped` as -Infinity, which only Python's reader takes."""
    tiny.save("pixart-alpha", tmp_path / "model")
    theirs = DPMSolverMultistepScheduler.from_pretrained(tmp_path / "model" / "scheduler")
    assert theirs.config.lambda_min_clipped == -float("inf")
    config = parse_json(written(tmp_path / "model", tmp_path / "bundle"))
    ours = DPMSolverMultistepScheduler.from_config(config)
    own = {"_use_default_values", "_diffusers_version", "_class_name"}
    expected = {name: value for name, value in theirs.config.items() if name not in own}
    assert {name: value for name, value in ours.config.items() if name not in own} == expected


@pytest.mark.parametrize("name", tiny.OF_TEXT)
def test_every_family(name: str, tmp_path: Path) -> None:
    tiny.save(name, tmp_path / "model")
    assert isinstance(parse_json(written(tmp_path / "model", tmp_path / "bundle")), dict)
