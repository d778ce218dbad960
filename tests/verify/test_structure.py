"""Graphs that differ in nothing but sizes are told from graphs that differ in more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tgate_export.verify.structure import structure

WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)


def save(path: Path, side: int, **changes: Any) -> Path:
    """Save `y = op(reshape(x, [side, 2]) @ weight)`, the weight in a file of its own."""
    given = {"op": "Relu", "weight": WEIGHT, "output": "y", "axis": 0} | changes
    shape = numpy_helper.from_array(np.array([side, 2], dtype=np.int64), "shape")
    weight = numpy_helper.from_array(given["weight"], f"weight_{side}")
    onnx.external_data_helper.set_external_data(weight, "w", offset=given.get("offset", 0))
    weight.ClearField("raw_data")
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["a"], allowzero=given["axis"]),
        helper.make_node("MatMul", ["a", weight.name], ["b"]),
        helper.make_node(given["op"], ["b"], [given["output"]]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2 * side])],
        [helper.make_tensor_value_info(given["output"], TensorProto.FLOAT, [side, 3])],
        [shape, weight],
    )
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def test_sizes_make_no_difference(tmp_path: Path) -> None:
    small, large = structure(save(tmp_path / "a", 2)), structure(save(tmp_path / "b", 64))
    assert small == large
    assert [node[0] for node in small] == ["Reshape", "MatMul", "Relu", "output"]


@pytest.mark.parametrize(
    "change",
    [
        {"op": "Sigmoid"},
        {"weight": WEIGHT.T.copy()},
        {"offset": 4096},
        {"output": "z"},
        {"axis": 1},
    ],
)
def test_all_else_does(tmp_path: Path, change: dict[str, Any]) -> None:
    assert structure(save(tmp_path / "a", 2)) != structure(save(tmp_path / "b", 2, **change))
