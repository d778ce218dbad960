"""Attention as diffusers' exports write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper


def save_attention(path: Path, heads: int, queries: int, keys: int, channels: int) -> None:
    """Save a graph q [B, S, N * D], k and v [B, L, N * D] -> y [B, S, N * D] in fp16."""
    half = TensorProto.FLOAT16
    counts = {"q": queries, "k": keys, "v": keys}
    joined = {name: ["batch", count, heads * channels] for name, count in counts.items()}
    nodes, info = [], []
    for name, count in counts.items():
        nodes += [
            helper.make_node("Reshape", [name, "split"], [f"{name}_split"]),
            helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=[0, 2, 1, 3]),
        ]
        info.append(
            helper.make_tensor_value_info(f"{name}_heads", half, ["batch", heads, count, channels])
        )
    nodes += [
        helper.make_node("Attention", ["q_heads", "k_heads", "v_heads"], ["a"]),
        helper.make_node("Transpose", ["a"], ["a_split"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["a_split", "join"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info(name, half, shape) for name, shape in joined.items()]
    result = helper.make_tensor_value_info("y", half, joined["q"])
    shapes = {"split": [0, 0, heads, channels], "join": [0, 0, heads * channels]}
    graph = helper.make_graph(
        nodes, "attention", inputs, [result],
        [onnx.numpy_helper.from_array(np.array(shape), name) for name, shape in shapes.items()],
        value_info=[*info, *inputs, result],
    )  # fmt: skip
    opset = helper.make_opsetid("", 23)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=11), path)
