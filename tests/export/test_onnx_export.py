"""What is removed from an exported graph, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tgate_export.export.onnx_export import _drop_expansions


@pytest.mark.parametrize("graph", ["full", "gated"])
def test_nothing_of_a_denoiser_is_computed_on_the_host(tiny_bundle: Path, graph: str) -> None:
    """ONNX Runtime puts shape arithmetic on the CPU, and then captures no CUDA graph."""
    model = onnx.load(tiny_bundle / "graphs" / f"{graph}.onnx", load_external_data=False)
    assert not {"Shape", "Size", "Expand"} & {node.op_type for node in model.graph.node}


def test_only_expansions_to_the_same_shape_are_dropped() -> None:
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["size"]),
            helper.make_node("Expand", ["x", "size"], ["same"]),
            helper.make_node("Expand", ["row", "size"], ["wider"]),
            helper.make_node("Add", ["same", "wider"], ["y"]),
        ],
        "test",
        [
            helper.make_tensor_value_info("x", floats, ["batch", 3]),
            helper.make_tensor_value_info("row", floats, [1, 3]),
        ],
        [helper.make_tensor_value_info("y", floats, ["batch", 3])],
        value_info=[
            helper.make_tensor_value_info("same", floats, ["batch", 3]),
            helper.make_tensor_value_info("wider", floats, ["batch", 3]),
        ],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    model = onnx_ir.from_proto(before)
    _drop_expansions(model)
    after = onnx_ir.to_proto(model)
    assert [node.op_type for node in after.graph.node] == ["Shape", "Expand", "Add"]
    random = np.random.default_rng(0)
    inputs = {
        "x": random.standard_normal((4, 3), dtype=np.float32),
        "row": random.standard_normal((1, 3), dtype=np.float32),
    }
    found, expected = (
        onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, inputs)[0]
        for proto in (after, before)
    )
    np.testing.assert_array_equal(found, expected)
