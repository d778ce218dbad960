"""Fused norms are what ONNX's operator computes; numpy stands for the kernel, which needs CUDA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tgate_export.runtime.backends.fused_group_norm import fuse_group_norm
from tgate_export.runtime.backends.onnx_file import read_model


class GroupNorm(OpRun):
    """com.microsoft's operator as ONNX Runtime documents it, on channels-last images."""

    op_domain = "com.microsoft"

    def _run(
        self, x: Any, scale: Any, bias: Any, activation: int, channels_last: int, epsilon: float,
        groups: int,
    ) -> Any:  # fmt: skip
        assert channels_last == 1
        assert scale.dtype == bias.dtype == np.float32
        wide = x.astype(np.float64)
        grouped = wide.reshape(len(x), -1, groups, x.shape[3] // groups)
        mean = grouped.mean((1, 3), keepdims=True)
        deviation = np.sqrt(grouped.var((1, 3), keepdims=True) + epsilon)
        result = ((grouped - mean) / deviation).reshape(x.shape) * scale + bias
        if activation:
            result = result / (1 + np.exp(-result))
        return (result.astype(x.dtype),)


def save_norms(
    path: Path, channels: int = 8, groups: int = 2, dtype: int = TensorProto.FLOAT
) -> None:
    """A norm with SiLU, one without, one whose sigmoid is read twice, one of [B, C, N]."""
    norm = {"num_groups": groups, "epsilon": 1e-3}
    image, row = ["batch", channels, 4, 6], ["batch", channels, 24]
    kind = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    random = np.random.default_rng(0)
    affine = [
        onnx.numpy_helper.from_array(random.standard_normal(channels).astype(kind), name)
        for name in ("scale", "bias")
    ]
    nodes = [
        helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["a"], **norm),
        helper.make_node("Sigmoid", ["a"], ["b"]),
        helper.make_node("Mul", ["b", "a"], ["c"]),
        helper.make_node("GroupNormalization", ["c", "scale", "bias"], ["d"], **norm),
        helper.make_node("GroupNormalization", ["d", "scale", "bias"], ["e"], **norm),
        helper.make_node("Sigmoid", ["e"], ["f"]),
        helper.make_node("Mul", ["e", "f"], ["g"]),
        helper.make_node("Add", ["g", "f"], ["h"]),
        helper.make_node("Reshape", ["h", "flat"], ["i"]),
        helper.make_node("GroupNormalization", ["i", "scale", "bias"], ["y"], **norm),
    ]
    info = [helper.make_tensor_value_info(name, dtype, image) for name in "abcdefgh"]
    info.append(helper.make_tensor_value_info("i", dtype, row))
    graph = helper.make_graph(
        nodes, "norms",
        [helper.make_tensor_value_info("x", dtype, image)],
        [helper.make_tensor_value_info("y", dtype, row)],
        [*affine, onnx.numpy_helper.from_array(np.array([0, 0, -1]), "flat")],
        value_info=[*info, helper.make_tensor_value_info("x", dtype, image)],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), path
    )


@pytest.mark.parametrize(
    ("dtype", "kind", "tolerance"),
    # Sums in fp32; results in fp16 of four norms after one another.
    [(TensorProto.FLOAT, np.float32, 1e-5), (TensorProto.FLOAT16, np.float16, 1e-2)],
)
def test_same_results(tmp_path: Path, dtype: int, kind: Any, tolerance: float) -> None:
    path = tmp_path / "norms.onnx"
    save_norms(path, dtype=dtype)
    model = read_model(path)
    assert fuse_group_norm(model) == 3
    fused = onnx.ModelProto.FromString(model.SerializeToString())
    kinds = [node.op_type for node in fused.graph.node]
    assert kinds.count("GroupNorm") == 3
    assert kinds.count("GroupNormalization") == 1  # no image
    assert kinds.count("Sigmoid") == 1  # read twice
    x = np.random.default_rng(1).standard_normal((3, 8, 4, 6)).astype(kind)
    found = ReferenceEvaluator(fused, new_ops=[GroupNorm]).run(None, {"x": x})[0]
    expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (2080, 2)])
def test_groups_that_the_kernel_does_not_take_stay(
    tmp_path: Path, channels: int, groups: int
) -> None:
    path = tmp_path / "norms.onnx"
    save_norms(path, channels, groups)
    model = read_model(path)
    before = model.SerializeToString()
    assert fuse_group_norm(model) == 0
    assert model.SerializeToString() == before


def test_every_norm_of_a_denoiser(tiny_bundle: Path) -> None:
    for name in ("full", "gated"):
        path = tiny_bundle / "graphs" / f"{name}.onnx"
        model = read_model(path)
        norms = [node.op_type for node in model.graph.node].count("GroupNormalization")
        assert fuse_group_norm(model) == norms > 0
        known = {"", *(entry.name for entry in model.graph.initializer)}  # "": left out
        known |= {entry.name for entry in onnx.load(path, load_external_data=False).graph.input}
        for node in model.graph.node:  # each after what it reads
            assert known.issuperset(node.input)
            known.update(node.output)
