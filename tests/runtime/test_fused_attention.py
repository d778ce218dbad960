"""Fused attention computes what ONNX's own operator does, and leaves alone what it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.support.attention import save_attention
from tgate_export.runtime.backends.fused_attention import fuse_attention
from tgate_export.runtime.backends.onnx_file import read_model

# The same sums in another order.
RELATIVE = 1e-5


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("graph", ["full", "gated", "vae_decoder"])
def test_same_results(tiny_bundle: Path, graph: str, batch: int) -> None:
    path = tiny_bundle / "graphs" / f"{graph}.onnx"
    model = read_model(path)
    attentions = operators(path).count("Attention")
    assert attentions > 0
    assert fuse_attention(model) == attentions
    fused = [node.op_type for node in model.graph.node]
    assert fused.count("MultiHeadAttention") == attentions
    assert "Attention" not in fused
    # What split and transposed the heads is gone: seven nodes and the attention for each one.
    assert len(operators(path)) - len(fused) >= 7 * attentions
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    ours = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    inputs = {
        entry.name: random.standard_normal(
            [batch if isinstance(dim, str) else dim for dim in entry.shape], dtype=np.float32
        )
        for entry in plain.get_inputs()
    }
    names = [entry.name for entry in plain.get_outputs()]
    every = dict(zip(names, plain.run(None, inputs), strict=True))
    for name, found in zip(names, ours.run(None, inputs), strict=True):
        # Of two predictions that are nearly alike, the difference has the errors of both.
        scale = every["noise_pred" if name == "guidance_delta" else name]
        assert np.abs(found - every[name]).max() <= RELATIVE * np.abs(scale).max()


def test_a_mask_is_left_alone(tiny_bundle: Path) -> None:
    path = tiny_bundle / "graphs" / "text_encoder.onnx"
    assert "Attention" in operators(path)
    model = read_model(path)
    assert fuse_attention(model) == 0
    assert onnx.ModelProto.FromString(model.SerializeToString()) == onnx.load(
        path, load_external_data=False
    )


@pytest.mark.parametrize("change", ["causal", "fp16", "read twice", "unknown heads"])
def test_other_forms_are_left_alone(tiny_bundle: Path, change: str) -> None:
    model = read_model(tiny_bundle / "graphs" / "gated.onnx")
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    first = attentions[0]
    by_name = {value.name: value.type.tensor_type for value in model.graph.value_info}
    if change == "causal":
        causal = next(entry for entry in first.attribute if entry.name == "is_causal")
        causal.i = 1
    elif change == "fp16":
        transpose = next(n for n in model.graph.node if first.input[0] in n.output)
        reshape = next(n for n in model.graph.node if transpose.input[0] in n.output)
        by_name[reshape.input[0]].elem_type = 10
    elif change == "read twice":
        model.graph.output.add(name=first.output[0])
        model.graph.node.add(op_type="Identity", input=[first.output[0]], output=["copy"])
        model.graph.output.add(name="copy")
    else:
        by_name[first.input[0]].shape.dim[1].ClearField("dim_value")
    kept = first.output[0]
    assert fuse_attention(model) == len(attentions) - 1
    (left,) = [node for node in model.graph.node if node.op_type == "Attention"]
    assert left.output[0] == kept


def test_half_precision_is_for_where_there_is_a_kernel(tmp_path: Path) -> None:
    """Of the same graph; what the kernel computes is tested on a GPU."""
    path = tmp_path / "attention.onnx"
    save_attention(path, heads=2, queries=4, keys=7, channels=8)
    assert fuse_attention(read_model(path)) == 0
    model = read_model(path)
    assert fuse_attention(model, half=True) == 1
    [node] = model.graph.node
    assert (node.op_type, list(node.input)) == ("MultiHeadAttention", ["q", "k", "v"])
    assert {entry.name: entry.i for entry in node.attribute} == {"num_heads": 2}
