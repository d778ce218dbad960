"""ONNX files read without the onnx package, against the onnx package."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tgate_export.bundle.integrity import read_manifest
from tgate_export.runtime.backends.onnx_file import external_arrays, read_model

GRAPHS = ("text_encoder", "full", "gated", "sampler", "vae_decoder")


@pytest.mark.parametrize("graph", GRAPHS)
def test_nothing_is_lost(tiny_bundle: Path, graph: str) -> None:
    path = tiny_bundle / "graphs" / f"{graph}.onnx"
    again = onnx.ModelProto.FromString(read_model(path).SerializeToString())
    assert again == onnx.load(path, load_external_data=False)


@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "sampler"])
def test_weights_are_views_of_their_file(tiny_bundle: Path, tmp_path: Path, graph: str) -> None:
    # A copy: the onnx package reads no files of several names, and other tests link a bundle's.
    path = shutil.copytree(tiny_bundle / "graphs", tmp_path / "graphs") / f"{graph}.onnx"
    file = read_manifest(tiny_bundle).graph(graph).weights
    assert file is not None
    weights = np.memmap(tiny_bundle / file, dtype=np.uint8, mode="r")
    found = external_arrays(read_model(path), weights, Path(file).name)
    outside = {
        tensor.name
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert found.keys() == outside
    assert outside
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in found:
            np.testing.assert_array_equal(found[tensor.name], numpy_helper.to_array(tensor))
            assert np.shares_memory(found[tensor.name], weights)


def test_a_file_that_is_too_short_or_another(tiny_bundle: Path) -> None:
    model = read_model(tiny_bundle / "graphs" / "gated.onnx")
    with pytest.raises(ValueError, match=r"ends after denoiser\.weights"):
        external_arrays(model, np.zeros(100, dtype=np.uint8), "denoiser.weights")
    with pytest.raises(ValueError, match=r"is not in other\.weights"):
        external_arrays(model, np.zeros(100, dtype=np.uint8), "other.weights")


def test_no_model(tmp_path: Path) -> None:
    (path := tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"x\.onnx is not an ONNX model"):
        read_model(path)
