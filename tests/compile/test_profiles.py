"""Shape ranges against the shapes that the graphs really have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import Manifest, Range
from tgate_export.bundle.sampler_table import NUM_WEIGHTS
from tgate_export.common.errors import BundleError
from tgate_export.compile.profiles import graph_shapes

ONE = Range(min=1, opt=1, max=1)


def test_static_batch_makes_every_input_static(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    for graph in manifest.graphs:
        assert all(shape.static for shape in graph_shapes(manifest, graph, ONE).values())
    assert graph_shapes(manifest, "sampler", ONE)["weights"].opt == (1, NUM_WEIGHTS)


def test_ends_are_those_of_batch_and_size(tiny_dynamic_bundle: Path) -> None:
    """Runs `full` at both ends: its caches have the shapes that `gated` is compiled for."""
    manifest = open_bundle(tiny_dynamic_bundle).manifest
    batch = Range(min=1, opt=2, max=3)
    full = graph_shapes(manifest, "full", batch)
    gated = graph_shapes(manifest, "gated", batch)
    assert full["sample"].min == (1, 4, 8, 8)  # 16 x 16 pixels, downscale 2
    assert full["sample"].opt == (2, 4, 16, 12)
    assert full["sample"].max == (3, 4, 24, 20)
    assert not full["sample"].static
    session = onnxruntime.InferenceSession(tiny_dynamic_bundle / "graphs" / "full.onnx")
    caches = [output.name for output in session.get_outputs()][1:]
    for end in ("min", "opt", "max"):
        inputs = {
            entry.name: np.zeros(getattr(full[entry.name], end), dtype=np.float32)
            for entry in session.get_inputs()
        }
        for name, value in zip(caches, session.run(caches, inputs), strict=True):
            assert getattr(gated[name], end) == value.shape


def test_unknown_dimension_is_named(tiny_bundle: Path) -> None:
    raw = open_bundle(tiny_bundle).manifest.model_dump(mode="json")
    raw["graphs"]["gated"]["inputs"][0]["shape"][2] = "frames"
    manifest = Manifest.model_validate_json(json.dumps(raw))
    with pytest.raises(BundleError, match=r"'gated': sample has a dimension 'frames'"):
        graph_shapes(manifest, "gated", ONE)
