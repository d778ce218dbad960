"""A bundle's graphs, checked before an engine sees them.

A tensor of an ONNX file may say that its data lies elsewhere: at an offset of any file, and for
ONNX Runtime and OpenVINO at an address of this process. Here every tensor, wherever the format
allows one, has its data in the file itself, or is an initializer whose data lies within the weights
file that the manifest names.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import PurePath, PurePosixPath
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest_graphs import Tensor
from tgate_export.common.errors import BundleError
from tgate_export.runtime.backends.onnx_file import EXTERNAL, parse_model

# Graphs of the largest models have a few MiB: their weights lie beside them.
MAX_GRAPH_BYTES = 256 * 2**20
# Others bring code or files with them: a node EPContext of com.microsoft names an engine.
_DOMAINS = ("", "ai.onnx")
# TensorProto.DataType -> bits of an element, and the field that holds it where raw_data does not.
_TYPES = {
    1: (32, "float_data"), 2: (8, "int32_data"), 3: (8, "int32_data"), 4: (16, "int32_data"),
    5: (16, "int32_data"), 6: (32, "int32_data"), 7: (64, "int64_data"), 9: (8, "int32_data"),
    10: (16, "int32_data"), 11: (64, "double_data"), 12: (32, "uint64_data"),
    13: (64, "uint64_data"), 16: (16, "int32_data"),
}  # fmt: skip
_STRING = 8
_DTYPES: dict[str, int] = {"float32": 1, "int64": 7, "float16": 10}
_FIELDS = (*dict.fromkeys(field for _, field in _TYPES.values()), "string_data")
_ENTRIES = {"location", "offset", "length", "checksum"}
_NUMBER = re.compile(r"[0-9]{1,18}", re.ASCII)


def read_graph(bundle: Bundle, graph: str) -> Any:
    """Return a graph's ModelProto: that of the bytes that the manifest lists.

    Args:
        bundle: where the graph is.
        graph: its name.

    Raises:
        BundleError: the file was changed, is no ONNX model, or has a tensor whose data lies
            anywhere but in it or within the graph's weights, or other inputs or outputs than
            the manifest says; names the file and the tensor.
    """
    manifest = bundle.manifest
    entry = manifest.graph(graph)
    path = bundle.file(entry.file)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_GRAPH_BYTES + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path} ({error}): build the bundle again") from None
    if hashlib.sha256(content).hexdigest() != manifest.files[entry.file].sha256:
        raise BundleError(
            f"{path} was changed after the build (its sha256 differs): build the bundle again"
        )
    weights = None
    if entry.weights is not None:
        weights = PurePosixPath(entry.weights).name, manifest.files[entry.weights].bytes
    try:
        if len(content) > MAX_GRAPH_BYTES:
            raise ValueError(f"it has more than {MAX_GRAPH_BYTES >> 20} MiB")
        model = _parse(content, path)
        check_model(model, weights)
        _check_tensors("input", model.graph.input, entry.inputs)
        _check_tensors("output", model.graph.output, entry.outputs)
    except ValueError as error:
        raise BundleError(f"{path}: {error}: build the bundle again") from None
    return model


def _check_tensors(kind: str, found: Any, expected: Sequence[Tensor]) -> None:
    """Check that inputs or outputs are those that buffers are made for."""
    entries = {entry.name: entry.type.tensor_type for entry in found}
    if entries.keys() != {tensor.name for tensor in expected}:
        raise ValueError(f"it has other {kind}s than the manifest says")
    for tensor in expected:
        entry = entries[tensor.name]
        dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in entry.shape.dim]
        fits = entry.HasField("shape") and len(dims) == len(tensor.shape)
        for side, wanted in zip(dims, tensor.shape, strict=False):
            fits = fits and (side is None or isinstance(wanted, str) or side == wanted)
        if not fits or entry.elem_type != _DTYPES[tensor.dtype]:
            raise ValueError(f"its {kind} {tensor.name!r} is not as the manifest says")


def _parse(content: bytes, path: PurePath) -> Any:
    try:
        model = parse_model(content, path)
    except ValueError:
        model = None
    if model is None or not model.HasField("graph"):  # no bytes are a message, too
        raise ValueError("it is not an ONNX model")
    return model


def check_model(model: Any, weights: tuple[str, int] | None) -> None:
    """Check that all data of a model lies in it or in its file of weights.

    Args:
        model: a ModelProto.
        weights: the file's name and bytes, if the model has one.

    Raises:
        ValueError: says which tensor's does not, or what else the model should not have.
    """
    size = model.ByteSize()
    model.DiscardUnknownFields()
    if model.ByteSize() != size:
        raise ValueError("it has fields that this version does not know")
    names: set[str] = set()
    inputs = {entry.name for entry in model.graph.input}
    for tensor in model.graph.initializer:
        if not tensor.name or tensor.name in names:
            raise ValueError(f"tensor {tensor.name!r} is there twice, or has no name")
        names.add(tensor.name)
        if tensor.data_location == EXTERNAL:
            if tensor.name in inputs:
                raise ValueError(f"tensor {tensor.name!r} is an input, too")
            _check_external(tensor, weights)
        else:
            _check_inline(tensor)
    for tensor in _other_tensors(model):
        if tensor.data_location == EXTERNAL:
            where = next((e.value for e in tensor.external_data if e.key == "location"), None)
            raise ValueError(f"tensor {tensor.name!r} is in {where!r}, and is no initializer")
        _check_inline(tensor)


def _other_tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor but the main graph's initializers; refuse nodes of foreign domains."""
    yield from _of_sparse(model.graph.sparse_initializer)
    yield from _of_nodes(model.graph.node)
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto)
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        if node.domain not in _DOMAINS:
            raise ValueError(f"node {node.name!r} is of the domain {node.domain!r}")
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes: Any) -> Iterator[Any]:
    # Whatever an attribute's type says: a reader may look at any of them.
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        if attribute.HasField("sparse_tensor"):
            yield from _of_sparse([attribute.sparse_tensor])
        yield from _of_sparse(attribute.sparse_tensors)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _of_graph(graph)


def _of_sparse(tensors: Any) -> Iterator[Any]:
    for tensor in tensors:
        yield tensor.values
        yield tensor.indices


def _elements(tensor: Any) -> int:
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ValueError(f"tensor {tensor.name!r} has the shape {dims}")
    return math.prod(dims)


def _check_external(tensor: Any, weights: tuple[str, int] | None) -> None:
    where = {entry.key: entry.value for entry in tensor.external_data}
    if len(where) < len(tensor.external_data) or _has_data(tensor):
        raise ValueError(f"tensor {tensor.name!r} says twice where its data is")
    location = where.get("location")
    if weights is None or location != weights[0]:
        raise ValueError(f"tensor {tensor.name!r} is in {location!r}, not in the bundle's weights")
    file, file_bytes = weights
    numbers = where.get("offset", ""), where.get("length", "")
    if where.keys() - _ENTRIES or not all(map(_NUMBER.fullmatch, numbers)):
        raise ValueError(f"tensor {tensor.name!r} does not say plainly where in {file} it is")
    offset, length = map(int, numbers)
    if tensor.data_type not in _TYPES or length != _elements(tensor) * _bytes(tensor):
        raise ValueError(f"tensor {tensor.name!r} has no size that fits its shape")
    if offset + length > file_bytes:
        raise ValueError(f"tensor {tensor.name!r} is not within {file}")


def _bytes(tensor: Any) -> int:
    return _TYPES[tensor.data_type][0] // 8


def _has_data(tensor: Any) -> bool:
    return any(len(getattr(tensor, field)) for field in (*_FIELDS, "raw_data"))


def _check_inline(tensor: Any) -> None:
    """Check that a tensor holds as many elements as its shape says."""
    name, kind = tensor.name, tensor.data_type
    if tensor.data_location != 0 or tensor.external_data:
        raise ValueError(f"tensor {name!r} says twice where its data is")
    lengths = {field: len(getattr(tensor, field)) for field in _FIELDS}
    expected = dict.fromkeys(_FIELDS, 0)
    raw, elements = len(tensor.raw_data), _elements(tensor)
    if kind in _TYPES and raw:
        fits = raw == elements * _bytes(tensor)
    else:
        fits = not raw and (kind in _TYPES or kind == _STRING)
        expected[_TYPES[kind][1] if kind in _TYPES else "string_data"] = elements
    if not fits or lengths != expected:
        raise ValueError(f"tensor {name!r} has no size that fits its shape")
