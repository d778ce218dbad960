"""One PyTorch module to one ONNX model, with fake tensors: nothing is computed."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim

from tgate_export.bundle.manifest import Range, Size
from tgate_export.export.layer_constants import following_weights
from tgate_export.export.quick_export import quickly
from tgate_export.export.translations import TRANSLATIONS
from tgate_export.families.graphs import GraphExport, GraphInput

if TYPE_CHECKING:
    import onnx_ir

# 23 keeps Attention and GroupNormalization as single nodes; ONNX Runtime, TensorRT 11 and
# TensorRT-RTX 1.7 all take it.
OPSET = 23


@torch.no_grad()
def export_graph(graph: GraphExport, batch: Range, size: Size, downscale: int) -> onnx_ir.Model:
    """Export a graph; its weights still point at the module's own memory, see `LayerConstants`.

    Args:
        graph: what to export.
        batch: batch range; dynamic unless it is fixed.
        size: image size range in pixels; dynamic unless it is fixed.
        downscale: pixels of an image side for one latent.
    """
    module = graph.module().eval()
    dims = _Dims(graph.sizes, batch, size, downscale)
    arguments = tuple(dims.example(entry) for entry in graph.inputs)
    shapes = _as_arguments(module, [dims.dynamic(entry) for entry in graph.inputs])
    with _quiet(), quickly(), following_weights(module):
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            input_names=[entry.name for entry in graph.inputs],
            output_names=[entry.name for entry in graph.outputs],
            dynamic_shapes=shapes,
            custom_translation_table=dict(TRANSLATIONS),
            verbose=False,
            optimize=True,
        )
    assert program is not None
    _align_normalizations(program.model)
    _drop_expansions(program.model)
    _drop_traces(program.model)
    return program.model


def _as_arguments(module: torch.nn.Module, values: list[Any]) -> tuple[Any, ...]:
    """Nest values as `forward` takes them: those of `*args` in a tuple of their own."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = sum(entry.kind is not inspect.Parameter.VAR_POSITIONAL for entry in parameters)
    return (*values[:named], tuple(values[named:])) if len(values) > named else tuple(values)


def _align_normalizations(model: onnx_ir.Model) -> None:
    """Give every RMSNormalization a scale of its input's type.

    ONNX allows another one, as where T5 normalizes fp32 sums in an fp16 model, but ONNX Runtime
    expands it to a product of two types that it then refuses.
    """
    import onnx_ir

    graph = model.graph
    for node in list(graph.all_nodes()):
        if node.op_type != "RMSNormalization":
            continue
        value, scale = node.inputs[:2]
        result = node.outputs[0]
        if value is None or scale is None or value.dtype is None or value.dtype == scale.dtype:
            continue
        assert result.dtype is not None
        widened = onnx_ir.node("Cast", [scale], {"to": value.dtype.value})
        widened.outputs[0].dtype, widened.outputs[0].shape = value.dtype, scale.shape
        narrowed = onnx_ir.node("Cast", [result], {"to": result.dtype.value})
        narrow = narrowed.outputs[0]
        narrow.dtype, narrow.shape = result.dtype, result.shape
        graph.insert_before(node, widened)
        graph.insert_after(node, narrowed)
        node.replace_input_with(1, widened.outputs[0])
        for user, index in tuple(result.uses()):
            if user is not narrowed:
                user.replace_input_with(index, narrow)
        narrow.name, result.name = result.name, f"{result.name}_wide"
        result.dtype = value.dtype
        for index, output in enumerate(graph.outputs):
            if output is result:
                graph.outputs[index] = narrow


def _drop_expansions(model: onnx_ir.Model) -> None:
    """Remove every Expand to the shape that its input has already.

    diffusers expands time steps to the batch. What computes its size runs on the host, and would
    keep ONNX Runtime from capturing the graph as a CUDA graph.
    """
    import onnx_ir
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(model.graph.all_nodes()):
        value, result = node.inputs[0] if node.inputs else None, node.outputs[0]
        if node.op_type != "Expand" or value is None or value.shape is None:
            continue
        known = all(isinstance(dim, int) or dim.value is not None for dim in value.shape)
        if known and value.shape == result.shape and not result.is_graph_output():
            onnx_ir.convenience.replace_all_uses_with(result, value)
    RemoveUnusedNodesPass()(model)


def _drop_traces(model: onnx_ir.Model) -> None:
    """Remove the exporter's stack traces: they hold this machine's paths, and megabytes."""
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values += node.outputs
        node.metadata_props.clear()
        node.doc_string = None
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None
    for owner in (model, graph):
        owner.metadata_props.clear()
        owner.doc_string = None


class _Dims:
    """Sizes of an example and the `Dim` of each free dimension."""

    def __init__(self, sizes: Mapping[str, int], batch: Range, size: Size, downscale: int) -> None:
        # An example of 0 or 1 would be specialised.
        self.sizes = {**sizes, "batch": batch.opt if batch.fixed else max(2, batch.min)}
        self.named: dict[str, Any] = {}
        if not batch.fixed:
            self.named["batch"] = Dim("batch", min=batch.min, max=batch.max)
        step = size.multiple // downscale
        for name, side in (("height", size.height), ("width", size.width)):
            if not side.fixed:
                root = Dim(
                    f"{name}_steps", min=side.min // size.multiple, max=side.max // size.multiple
                )
                self.named[f"latent_{name}"] = step * root if step > 1 else root
                self.named[name] = size.multiple * root

    def example(self, entry: GraphInput) -> torch.Tensor:
        shape = [dim if isinstance(dim, int) else self.sizes[dim] for dim in entry.shape]
        return torch.zeros(shape, dtype=entry.dtype)

    def dynamic(self, entry: GraphInput) -> dict[int, Any]:
        return {
            axis: self._dim(dim)
            for axis, dim in enumerate(entry.shape)
            if isinstance(dim, str) and self._dim(dim) is not None
        }

    def _dim(self, name: str) -> Any:
        if name.startswith("tokens_"):
            return Dim.AUTO
        return self.named.get(name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's own progress and deprecation chatter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
