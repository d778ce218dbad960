"""Whether two bundles' graphs differ in nothing but the sizes of their tensors."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.common.errors import VerificationError


def require_same_graphs(bundle: Bundle, copy: Bundle) -> None:
    """Compare every graph's nodes, their order and wiring, and the weight files.

    Numbers that depend on the size are constants inside the graphs; they are compared by type and
    rank only. The prompt encoder's nodes are left out: it scales images of any size to its own.

    Raises:
        VerificationError: names the first graph that differs, and where.
    """
    for name, graph in bundle.manifest.graphs.items():
        other = copy.manifest.graph(name)
        if graph.weights is not None and (
            bundle.manifest.files[graph.weights] != copy.manifest.files[str(other.weights)]
        ):
            raise VerificationError(f"graph {name!r} has other weights than for a small image")
        if name == bundle.manifest.prompt_encoder:
            continue
        pairs = zip_longest(structure(bundle.file(graph.file)), structure(copy.file(other.file)))
        for index, (found, expected) in enumerate(pairs):
            if found != expected:
                raise VerificationError(
                    f"graph {name!r} is not that of a small image: node {index} is {found}, "
                    f"there it is {expected}"
                )


def structure(path: Path) -> list[tuple[Any, ...]]:
    """Return what every node of an ONNX file does, and to what, without any sizes."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    values: dict[str, Any] = {"": None}
    values |= {entry.name: ("input", entry.name) for entry in graph.input}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = tuple((entry.key, entry.value) for entry in tensor.external_data)
            values[tensor.name] = ("weight", tensor.data_type, tuple(tensor.dims), where)
        else:  # may hold sizes
            values[tensor.name] = ("constant", tensor.data_type, len(tensor.dims))
    nodes = []
    for index, node in enumerate(graph.node):
        attributes = sorted(
            (entry.name, onnx.helper.get_attribute_value(entry))
            for entry in node.attribute
            if entry.type not in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.GRAPH)
        )
        nodes.append((node.op_type, attributes, [values[name] for name in node.input]))
        for output, name in enumerate(node.output):
            values[name] = (index, output)
    return [*nodes, *(("output", entry.name, values[entry.name]) for entry in graph.output)]
