"""What is removed from an exported graph, and what is not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxscript import rewriter
from onnxscript.rewriter import _matcher, rewrite

from tgate_export.export.onnx_export import _drop_expansions, _quick_matching


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


def test_quick_matching_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxscript has one pattern of several ends: two slices that are a split."""
    looked_at: list[str] = []
    matcher = _matcher.SimplePatternMatcher
    match = matcher.match

    def noted(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        if len(self.pattern.output_nodes) > 1:
            looked_at.append(node.op_type)
        return match(self, model, graph, node, **options)

    monkeypatch.setattr(matcher, "match", noted)
    usual = rewrite(halves())
    assert {"Relu", "Slice"} <= set(looked_at)
    looked_at.clear()
    with _quick_matching():
        quick = rewrite(halves())
    assert set(looked_at) == {"Slice"}
    assert matcher.match is noted
    assert quick == usual


SLOW = "cannot be told to match quickly .*: large models take longer"


def test_matching_where_onnxscript_has_other_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rewriter, "_matcher")
    monkeypatch.setitem(sys.modules, "onnxscript.rewriter._matcher", None)
    with pytest.warns(UserWarning, match=SLOW), _quick_matching():
        pass


def test_matching_where_patterns_have_other_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = _matcher.SimplePatternMatcher
    monkeypatch.setattr(matcher, "match", lambda *_: "as usual")
    with pytest.warns(UserWarning, match=SLOW), _quick_matching():
        assert matcher.match(SimpleNamespace(pattern=None), None, None, None) == "as usual"


def halves() -> onnx.ModelProto:
    """Return a model of the product of the halves of `relu(x)`, cut by slices."""
    nodes, bounds = [helper.make_node("Relu", ["x"], ["a"])], []
    for name, *values in (("left", 0, 2, 1), ("right", 2, 4, 1)):
        names = [f"{name}_{key}" for key in ("starts", "ends", "axes")]
        bounds += [
            helper.make_tensor(bound, TensorProto.INT64, [1], [value])
            for bound, value in zip(names, values, strict=True)
        ]
        nodes.append(helper.make_node("Slice", ["a", *names], [name]))
    nodes.append(helper.make_node("Mul", ["left", "right"], ["y"]))
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, width])
        for name, width in (("x", 4), ("y", 2), ("a", 4))
    ]
    graph = helper.make_graph(
        nodes, "test", tensors[:1], tensors[1:2], bounds, value_info=tensors[2:]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
