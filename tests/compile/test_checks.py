"""The parsed network of a real TensorRT-RTX against what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tgate_export.bundle.manifest_graphs import Graph, Input, Precision, Tensor
from tgate_export.common.errors import VerificationError
from tgate_export.compile.checks import check_precision, check_tensors
from tgate_export.compile.compiler import Compiler, load_compiler

F16, F32 = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return load_compiler("tensorrt-rtx")


def network_of(*, island: bool) -> Any:
    """Two fp16 matrix products; with `island`, the second in fp32 between casts."""
    from polygraphy.backend.trt import network_from_onnx_bytes

    square = np.eye(16)
    nodes = [helper.make_node("MatMul", ["x", "a"], ["y"])]
    if island:
        nodes += [
            helper.make_node("Cast", ["y"], ["y32"], to=F32),
            helper.make_node("MatMul", ["y32", "b32"], ["z32"], name="island"),
            helper.make_node("Cast", ["z32"], ["z"], to=F16),
        ]
    else:
        nodes.append(helper.make_node("MatMul", ["y", "b"], ["z"]))
    weights = {"a": square.astype(np.float16)}
    weights |= {"b32": square.astype(np.float32)} if island else {"b": square.astype(np.float16)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", F16, [1, 16])],
        [helper.make_tensor_value_info("z", F16, [1, 16])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model)
    return network_from_onnx_bytes(model.SerializeToString(), strongly_typed=True)


def test_island_is_named(compiler: Compiler) -> None:
    _, network, _parser = network_of(island=True)
    with pytest.raises(VerificationError, match=r"full: island.* computes in FLOAT, fp16 was ask"):
        check_precision("full", graph(), network)


def test_right_precision_passes_and_the_other_does_not(compiler: Compiler) -> None:
    _, network, _parser = network_of(island=False)
    check_precision("full", graph(), network)
    with pytest.raises(VerificationError, match=r"computes in HALF, fp32 was asked for \(2 such"):
        check_precision("full", graph(precision="fp32"), network)


def graph(
    *,
    name: str = "x",
    dtype: str = "float16",
    shape: tuple[int | str, ...] = ("batch", 16),
    precision: Precision = "fp16",
) -> Graph:
    x = Input.model_validate(
        {"name": name, "dtype": dtype, "shape": shape, "from": {"loop": "sample"}}
    )
    z = Tensor(name="z", dtype="float16", shape=("batch", 16))
    return Graph(
        file="a.onnx", weights=None, precision=precision, parameters=0, inputs=(x,), outputs=(z,)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "y"}, "input 'x' is not in the manifest"),
        ({"dtype": "float32"}, "input 'x' is HALF, the manifest says float32"),
        ({"shape": (1, 32)}, r"input 'x' has shape \[1, 16\], the manifest says \[1, 32\]"),
        ({"shape": (1, 16, 1)}, "input 'x' has shape"),
    ],
)
def test_tensors_that_differ_are_named(
    compiler: Compiler, changes: dict[str, Any], message: str
) -> None:
    _, network, _parser = network_of(island=False)
    check_tensors("full", graph(), network)
    with pytest.raises(VerificationError, match=f"full: {message}"):
        check_tensors("full", graph(**changes), network)
