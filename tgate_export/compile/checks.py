"""What is compiled is what was asked for: tensors against the manifest, layers by precision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tgate_export.bundle.manifest_graphs import Graph, Precision, Tensor
from tgate_export.common.errors import VerificationError

# TensorRT's names of element types.
TRT_DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64"}
COMPUTE_DTYPES: dict[Precision, str] = {"fp32": "FLOAT", "fp16": "HALF"}
# Where the time goes. Other layers may compute in fp32 for safety (norms, sums, embeddings).
_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
_ATTENTION = "ATTENTION_INPUT"


def check_tensors(name: str, graph: Graph, network: Any) -> None:
    """Compare a parsed network's inputs and outputs with the manifest.

    Raises:
        VerificationError: names the tensor, what was expected and what was found.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    _compare(name, "input", graph.inputs, inputs)
    _compare(name, "output", graph.outputs, outputs)


def _compare(graph: str, kind: str, expected: Iterable[Tensor], found: Iterable[Any]) -> None:
    by_name = {tensor.name: tensor for tensor in found}
    wanted = {tensor.name: tensor for tensor in expected}
    for odd in sorted(by_name.keys() ^ wanted.keys()):
        where = "the manifest" if odd in by_name else "the network"
        raise VerificationError(f"{graph}: {kind} {odd!r} is not in {where}")
    for name, tensor in wanted.items():
        dtype = _dtype(by_name[name])
        if dtype != TRT_DTYPES[tensor.dtype]:
            raise VerificationError(
                f"{graph}: {kind} {name!r} is {dtype}, the manifest says {tensor.dtype}"
            )
        # A free dimension is -1 before shapes are set.
        shape = tuple(by_name[name].shape)
        fits = len(shape) == len(tensor.shape) and all(
            isinstance(want, str) or have in (want, -1)
            for have, want in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise VerificationError(
                f"{graph}: {kind} {name!r} has shape {list(shape)}, "
                f"the manifest says {list(tensor.shape)}"
            )


def check_precision(name: str, graph: Graph, network: Any) -> None:
    """Check that every convolution, matrix product and attention computes as the manifest says.

    Networks are strongly typed, so the types of the parsed network are those of the plan.

    Raises:
        VerificationError: names the first layer that does not, and how many there are.
    """
    wanted = dict.fromkeys(_LAYERS, COMPUTE_DTYPES[graph.precision])
    wanted[_ATTENTION] = COMPUTE_DTYPES["fp32" if graph.float32_attention else graph.precision]
    odd_layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = str(layer.type).rpartition(".")[2]
        if kind not in wanted:
            continue
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        dtypes = {_dtype(tensor) for tensor in inputs if tensor is not None}
        if odd := sorted(dtypes - {wanted[kind], "BOOL"}):
            odd_layers.append(f"{layer.name} computes in {odd[0]}")
    if len(odd_layers) > graph.float32_layers:
        raise VerificationError(
            f"{name}: {odd_layers[0]}, {graph.precision} was asked for ({len(odd_layers)} such "
            f"layer(s), {graph.float32_layers} meant): export the graph in the right precision"
        )


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]
