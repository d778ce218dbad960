"""A killed build never leaves a bundle that opens and is wrong: scripts/kill_build.py, briefly."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from tgate_export.bundle.integrity import open_bundle

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import kill_build


def test_damage_is_seen(tiny_bundle: Path, tiny_bundle_copy: Path, tmp_path: Path) -> None:
    right = open_bundle(tiny_bundle).manifest
    assert kill_build.state(tmp_path / "none", right) == ("nothing", ())
    assert kill_build.state(tiny_bundle_copy, right) == ("bundle", ())
    other = right.model_copy(update={"graphs": {"full": right.graphs["gated"]}})
    found, problems = kill_build.state(tiny_bundle_copy, other)
    assert found == "bundle"
    assert problems
    (tiny_bundle_copy / "graphs" / "full.onnx").unlink()
    found, problems = kill_build.state(tiny_bundle_copy, right)
    assert found == "damaged"
    assert problems


def test_helper_that_stays_is_seen() -> None:
    assert not kill_build.group_ends(os.getpgid(0), seconds=0.1)


@pytest.mark.slow  # three interrupted builds and a whole one
def test_kills_at_random_moments(
    tiny_pipeline_dir: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))
    right = open_bundle(tiny_bundle).manifest
    out = tmp_path / "out" / "bundle"
    moments = random.Random(1)
    for index in range(3):
        if index == 2:
            shutil.copytree(tiny_bundle, out)
        kill = kill_build.kill_once(
            str(tiny_pipeline_dir), out, moments.uniform(1, 20), right, whole_group=index == 1
        )
        assert not kill.problems
    kill_build.build(str(tiny_pipeline_dir), out)
    assert kill_build.state(out, right) == ("bundle", ())
    assert os.listdir(out.parent) == [out.name]
