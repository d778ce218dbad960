"""Rewrite attention for ONNX Runtime: `MultiHeadAttention` in place of ONNX's `Attention`.

`MultiHeadAttention` of com.microsoft takes the heads side by side, without transposing. On a CPU it
computes in blocks, where ONNX's holds all products of queries and keys at once, 1 GiB for Stable
Diffusion at 512x512, and takes a third more time. On CUDA in fp16 it is right, where ONNX's is not
always: of 64 queries on 77 keys with 160 channels, the innermost cross-attention of Stable
Diffusion 1.5, ONNX Runtime 1.31.1 returns something else, now and then NaN.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tgate_export.runtime.backends.onnx_file import (
    CONTRIB,
    FLOAT16,
    FLOAT32,
    INT,
    messages,
    readers,
    replace_nodes,
)

_SWAP_HEADS = [0, 2, 1, 3]
# Attributes of `Attention` that change nothing when they are 0.
_NEUTRAL = {"qk_matmul_output_mode", "softcap", "is_causal"}


def fuse_attention(model: Any, *, half: bool = False) -> int:
    """Rewrite, in place, what has this form; return how many there were.

    [B, S, N * D] -> Reshape -> Transpose -> Attention [B, N, S, D] -> Transpose -> Reshape, without
    a mask.

    Args:
        model: a ModelProto of `onnx_file`.
        half: in fp16, too, and not in fp32 alone. The CPU has no kernel for it.
    """
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    used_by = readers(graph)
    types = {value.name: value.type.tensor_type for value in graph.value_info}
    dtypes = {FLOAT32, FLOAT16} if half else {FLOAT32}
    count = 0
    for node in graph.node:
        if not _is_plain(node):
            continue
        inputs = [_before(made_by, name) for name in node.input]
        reshape = _after(used_by, node.output[0])
        if reshape is None or not all(_is_joined(types.get(name), dtypes) for name in inputs):
            continue
        query = types[node.input[0]].shape.dim
        if not (
            _is_joined(types.get(reshape.output[0]), dtypes)
            and len(query) == 4
            and query[1].dim_value
        ):
            continue
        scale = [entry for entry in node.attribute if entry.name == "scale"]
        heads = messages()["AttributeProto"](name="num_heads", type=INT, i=query[1].dim_value)
        output = reshape.output[0]
        # In the place of the last node, where everything that it reads has been computed.
        reshape.Clear()
        reshape.op_type, reshape.domain, reshape.name = "MultiHeadAttention", CONTRIB, node.name
        reshape.input.extend(inputs)
        reshape.output.append(output)
        reshape.attribute.extend([heads, *scale])
        count += 1
    if count:
        replace_nodes(model, _used_nodes(graph))
    return count


def _is_plain(node: Any) -> bool:
    """Whether it is attention without a mask, a cache, or anything else that is optional."""
    return (
        (node.op_type, node.domain) == ("Attention", "")
        and len([name for name in node.input if name]) == 3
        and len([name for name in node.output if name]) == 1
        and all(
            entry.name == "scale" or (entry.name in _NEUTRAL and not (entry.i or entry.f))
            for entry in node.attribute
        )
    )


def _before(made_by: Mapping[str, Any], name: str) -> str | None:
    """Return the tensor [B, S, N * D] that was reshaped and transposed to [B, N, S, D]."""
    transpose = made_by.get(name)
    if transpose is None or not _swaps_heads(transpose):
        return None
    reshape = made_by.get(transpose.input[0])
    return reshape.input[0] if reshape is not None and reshape.op_type == "Reshape" else None


def _after(used_by: Mapping[str, list[Any]], name: str) -> Any | None:
    """Return the node that makes [B, S, N * D] of the result, if nothing else reads it."""
    for wanted in (_swaps_heads, lambda node: node.op_type == "Reshape"):
        readers = used_by.get(name, [])
        if len(readers) != 1 or not wanted(readers[0]):
            return None
        name = readers[0].output[0]
    return readers[0]


def _swaps_heads(node: Any) -> bool:
    return node.op_type == "Transpose" and list(node.attribute[0].ints) == _SWAP_HEADS


def _is_joined(kind: Any, dtypes: Collection[int]) -> bool:
    """Whether a tensor is [B, S, N * D] of such a type."""
    return kind is not None and kind.elem_type in dtypes and len(kind.shape.dim) == 3


def _used_nodes(graph: Any) -> list[Any]:
    """Return the nodes whose results something reads."""
    wanted = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]
