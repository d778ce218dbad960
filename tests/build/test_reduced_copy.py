"""A bundle of a size that a CPU cannot run is proven on a copy of a smaller one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny import FIXED
from tgate_export.build import assembly
from tgate_export.build.build import build_bundle
from tgate_export.bundle.manifest import Range, Size
from tgate_export.common.progress import Progress
from tgate_export.families import geometry
from tgate_export.families.source import ModelSource


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, *text: object) -> None:
        self.notes.append("".join(map(str, text)))


@pytest.mark.builds
@pytest.mark.slow  # exports a whole pipeline twice
def test_graphs_are_proven_on_a_reduced_copy(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Videos need it, whose graphs take the exporter longest; an image model's do as well."""
    large, small = (Range(min=n, opt=n, max=n) for n in (24, 16))

    def smaller(_source: ModelSource, size: Size) -> Size:
        return size.model_copy(update={"height": small, "width": small})

    monkeypatch.setattr(geometry, "check_size", smaller)
    # Its graphs may come out of the cache.
    monkeypatch.setattr(assembly, "is_compared", lambda _unit: False)
    progress, out = Notes(), tmp_path / "bundle"
    result = build_bundle(
        str(tiny_pipeline_dir), size=(large, large), batch=FIXED, out=out, progress=progress
    )
    assert "comparing with PyTorch at 16x16, on a copy" in progress.notes
    assert result.manifest.size.width == large
    assert result.manifest.graph("full").inputs[0].shape[-1] == 24 // 2
    # The text encoder is compared as it is, and once.
    graphs = [difference.graph for difference in result.differences]
    assert set(graphs) == result.manifest.graphs.keys() - {"sampler"}
    assert graphs.count("text_encoder") == 1
    assert all(difference.holds for difference in result.differences)
    assert not [path for path in tmp_path.rglob("*") if "copy" in path.name]
