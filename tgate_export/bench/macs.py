"""Multiply-accumulates of a bundle's graphs and of whole runs, counted from the ONNX files.

The T-GATE papers count linear and convolution layers only (arXiv 2404.02747, table 1: 16.938 T for
50 passes of SD 1.5); attention's own matrix products, `Q K^T` and `P V`, are a sixth more there.
Both are given.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgate_export.bundle.dims import concrete_shape, graph_dims
from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import ModelError
from tgate_export.steps.step_plan import StepPlan

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates.

    Attributes:
        layers: of linear and convolution layers: the papers' convention.
        attention: of attention's own matrix products.
    """

    layers: int
    attention: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.attention

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.layers + other.layers, self.attention + other.attention)

    def __mul__(self, times: int) -> Macs:
        return Macs(self.layers * times, self.attention * times)


def graph_macs(
    bundle: Bundle,
    graph: str,
    *,
    batch: int = 1,
    height: int | None = None,
    width: int | None = None,
) -> Macs:
    """Count one run of a graph; of one that is run on tiles, all of them.

    Args:
        bundle: where the graph is.
        graph: its name.
        batch: images; guidance doubles it inside `full`.
        height: of the image in pixels; the bundle's usual one when not given.
        width: of the image in pixels; the bundle's usual one when not given.

    Raises:
        ModelError: a shape that counting needs cannot be inferred.
    """
    manifest = bundle.manifest
    size = manifest.size
    height, width = height or size.height.opt, width or size.width.opt
    dims = graph_dims(manifest, graph, batch=batch, height=height, width=width)
    entry = manifest.graph(graph)
    shapes = {tensor.name: concrete_shape(graph, tensor, dims) for tensor in entry.inputs}
    times = entry.tiles.count(height, width) if entry.tiles else 1
    return count_macs(bundle.file(entry.file), shapes) * times


def run_macs(bundle: Bundle, step_plan: StepPlan, *, batch: int = 1) -> Macs:
    """Count the denoiser evaluations of a whole run."""
    total = Macs(0, 0)
    for phase in dict.fromkeys(step_plan.phases):
        total += graph_macs(bundle, phase, batch=batch) * step_plan.phases.count(phase)
    return total


def count_macs(path: Path, inputs: dict[str, Shape]) -> Macs:
    """Count one run of an ONNX file, its inputs having these shapes."""
    return sum((node.macs for node in counted_nodes(path, inputs)), Macs(0, 0))


@dataclass(frozen=True)
class CountedNode:
    """A node that multiplies.

    Attributes:
        macs: of one run.
        operands: shapes of what is multiplied; a bias is left out.
        result: shape of its first output.
    """

    macs: Macs
    operands: tuple[Shape, ...]
    result: Shape


def counted_nodes(path: Path, inputs: dict[str, Shape]) -> Iterator[CountedNode]:
    """Yield the nodes of an ONNX file that multiply, its inputs having these shapes.

    Raises:
        ModelError: a shape that counting needs cannot be inferred.
    """
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    symbols: dict[str, int] = {}
    for entry in graph.input:
        for dim, size in zip(_dims(entry), inputs[entry.name], strict=True):
            symbols |= solve_dim(dim, size)
    dims: dict[str, tuple[str, ...]] = {
        entry.name: _dims(entry) for entry in (*graph.input, *graph.value_info, *graph.output)
    }
    dims |= {tensor.name: tuple(map(str, tensor.dims)) for tensor in graph.initializer}
    for node in graph.node:
        if count := _COUNTERS.get(node.op_type):
            shapes = []
            operands = node.input[: 3 if node.op_type == "Attention" else 2]
            for name in (*operands, node.output[0]):
                try:
                    shapes.append(tuple(evaluate_dim(dim, symbols) for dim in dims[name]))
                except (KeyError, ValueError) as error:
                    raise ModelError(
                        f"{path}: the shape of {name!r} at {node.name!r} is unknown ({error})"
                    ) from None
            *known, result = shapes
            yield CountedNode(count(node, known, result), tuple(known), result)


def _dims(entry: Any) -> tuple[str, ...]:
    shape = entry.type.tensor_type.shape
    return tuple(dim.dim_param or str(dim.dim_value) for dim in shape.dim)


def solve_dim(dim: str, size: int) -> dict[str, int]:
    """Return the symbol in an input's dimension: `batch`, or `8*steps`, is `size` long."""
    if match := re.fullmatch(r"(?:(\d+)\*)?([A-Za-z_]\w*)", dim):
        return {match[2]: size // int(match[1] or 1)}
    return {}


def evaluate_dim(dim: str, symbols: dict[str, int]) -> int:
    """Evaluate a dimension as the exporter writes them: integers, names, + - * // and brackets.

    Raises:
        ValueError: anything else, or a name that is not known.
    """

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.Name) and node.id in symbols:
            return symbols[node.id]
        if isinstance(node, ast.BinOp) and (operation := _OPERATORS.get(type(node.op))):
            return operation(value(node.left), value(node.right))
        raise ValueError(f"cannot evaluate {dim!r}")

    try:
        return value(ast.parse(dim, mode="eval").body)
    except SyntaxError:
        raise ValueError(f"cannot evaluate {dim!r}") from None


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _convolution(_node: Any, operands: list[Shape], result: Shape) -> Macs:
    # The weight is [C_out, C_in / groups, *kernel].
    return Macs(math.prod(result) * math.prod(operands[1][1:]), 0)


def _matrix_product(_node: Any, operands: list[Shape], result: Shape) -> Macs:
    return Macs(math.prod(result) * operands[0][-1], 0)


def _gemm(node: Any, operands: list[Shape], result: Shape) -> Macs:
    transposed = any(entry.name == "transA" and entry.i for entry in node.attribute)
    return Macs(math.prod(result) * operands[0][0 if transposed else -1], 0)


def _attention(_node: Any, operands: list[Shape], _result: Shape) -> Macs:
    query, key, value = operands  # [B, heads, S, D] each
    rows = math.prod(query[:-1]) * key[-2]
    return Macs(0, rows * (query[-1] + value[-1]))


_COUNTERS: dict[str, Callable[[Any, list[Shape], Shape], Macs]] = {
    "Conv": _convolution,
    "MatMul": _matrix_product,
    "Gemm": _gemm,
    "Attention": _attention,
}
