"""ONNX files without the onnx package.

ONNX is protobuf, which onnxruntime brings along. The message types here have the field numbers of
onnx.proto (IR version 11) and what graphs for a single device are made of: neither training nor
placement on devices. Protobuf keeps all other fields as they are; `read_graph` refuses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np

# By message: field name -> (number, type), a type being a scalar's or another message, in brackets
# where it is repeated.
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ModelProto": {
        "ir_version": (1, "int64"),
        "producer_name": (2, "string"),
        "producer_version": (3, "string"),
        "domain": (4, "string"),
        "model_version": (5, "int64"),
        "doc_string": (6, "string"),
        "graph": (7, "GraphProto"),
        "opset_import": (8, "[OperatorSetIdProto]"),
        "metadata_props": (14, "[StringStringEntryProto]"),
        "functions": (25, "[FunctionProto]"),
    },
    "OperatorSetIdProto": {"domain": (1, "string"), "version": (2, "int64")},
    "GraphProto": {
        "node": (1, "[NodeProto]"),
        "name": (2, "string"),
        "initializer": (5, "[TensorProto]"),
        "doc_string": (10, "string"),
        "input": (11, "[ValueInfoProto]"),
        "output": (12, "[ValueInfoProto]"),
        "value_info": (13, "[ValueInfoProto]"),
        "quantization_annotation": (14, "[TensorAnnotation]"),
        "sparse_initializer": (15, "[SparseTensorProto]"),
        "metadata_props": (16, "[StringStringEntryProto]"),
    },
    "NodeProto": {
        "input": (1, "[string]"),
        "output": (2, "[string]"),
        "name": (3, "string"),
        "op_type": (4, "string"),
        "attribute": (5, "[AttributeProto]"),
        "doc_string": (6, "string"),
        "domain": (7, "string"),
        "overload": (8, "string"),
        "metadata_props": (9, "[StringStringEntryProto]"),
    },
    "FunctionProto": {
        "name": (1, "string"),
        "input": (4, "[string]"),
        "output": (5, "[string]"),
        "attribute": (6, "[string]"),
        "node": (7, "[NodeProto]"),
        "doc_string": (8, "string"),
        "opset_import": (9, "[OperatorSetIdProto]"),
        "domain": (10, "string"),
        "attribute_proto": (11, "[AttributeProto]"),
        "value_info": (12, "[ValueInfoProto]"),
        "overload": (13, "string"),
        "metadata_props": (14, "[StringStringEntryProto]"),
    },
    "AttributeProto": {
        "name": (1, "string"),
        "f": (2, "float"),
        "i": (3, "int64"),
        "s": (4, "bytes"),
        "t": (5, "TensorProto"),
        "g": (6, "GraphProto"),
        "floats": (7, "[float]"),
        "ints": (8, "[int64]"),
        "strings": (9, "[bytes]"),
        "tensors": (10, "[TensorProto]"),
        "graphs": (11, "[GraphProto]"),
        "doc_string": (13, "string"),
        "tp": (14, "TypeProto"),
        "type_protos": (15, "[TypeProto]"),
        "type": (20, "int32"),
        "ref_attr_name": (21, "string"),
        "sparse_tensor": (22, "SparseTensorProto"),
        "sparse_tensors": (23, "[SparseTensorProto]"),
    },
    "TensorProto": {
        "dims": (1, "[int64]"),
        "data_type": (2, "int32"),
        "float_data": (4, "[float]"),
        "int32_data": (5, "[int32]"),
        "string_data": (6, "[bytes]"),
        "int64_data": (7, "[int64]"),
        "name": (8, "string"),
        "raw_data": (9, "bytes"),
        "double_data": (10, "[double]"),
        "uint64_data": (11, "[uint64]"),
        "doc_string": (12, "string"),
        "external_data": (13, "[StringStringEntryProto]"),
        "data_location": (14, "int32"),
        "metadata_props": (16, "[StringStringEntryProto]"),
    },
    "SparseTensorProto": {
        "values": (1, "TensorProto"),
        "indices": (2, "TensorProto"),
        "dims": (3, "[int64]"),
    },
    "TensorAnnotation": {
        "tensor_name": (1, "string"),
        "quant_parameter_tensor_names": (2, "[StringStringEntryProto]"),
    },
    "StringStringEntryProto": {"key": (1, "string"), "value": (2, "string")},
    "ValueInfoProto": {
        "name": (1, "string"),
        "type": (2, "TypeProto"),
        "doc_string": (3, "string"),
        "metadata_props": (4, "[StringStringEntryProto]"),
    },
    "TypeProto": {
        "tensor_type": (1, "TensorTypeProto"),
        "sequence_type": (4, "ElementTypeProto"),
        "denotation": (6, "string"),
        "optional_type": (9, "ElementTypeProto"),
    },
    "ElementTypeProto": {"elem_type": (1, "TypeProto")},
    "TensorTypeProto": {"elem_type": (1, "int32"), "shape": (2, "TensorShapeProto")},
    "TensorShapeProto": {"dim": (1, "[DimensionProto]")},
    "DimensionProto": {
        "dim_value": (1, "int64"),
        "dim_param": (2, "string"),
        "denotation": (3, "string"),
    },
}
CONTRIB = "com.microsoft"  # the domain of ONNX Runtime's own operators
FLOAT, INT, INTS = 1, 2, 7  # AttributeProto.AttributeType
FLOAT32, FLOAT16 = 1, 10  # TensorProto.DataType
_DTYPES = {FLOAT32: "<f4", 6: "<i4", 7: "<i8", 9: "?", FLOAT16: "<f2", 11: "<f8"}
EXTERNAL = 1  # TensorProto.DataLocation


@cache
def messages() -> Mapping[str, Any]:
    """Return the message classes by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tgate_export/onnx.proto", package="tgate_export.onnx", syntax="proto2"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            inner = kind.strip("[]")
            entry = message.field.add(name=field, number=number)
            entry.label = field_type.LABEL_REPEATED if kind != inner else field_type.LABEL_OPTIONAL
            if inner in _MESSAGES:
                entry.type = field_type.TYPE_MESSAGE
                entry.type_name = f".{file.package}.{inner}"
            else:
                entry.type = getattr(field_type, f"TYPE_{inner.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
        for name in _MESSAGES
    }


def read_model(path: Path) -> Any:
    """Return a file's ModelProto, as it is; see `read_graph` for what may be trusted.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no ONNX model.
    """
    return parse_model(path.read_bytes(), path)


def parse_model(content: bytes, path: PurePath) -> Any:
    """Return the ModelProto of a file's content.

    Raises:
        ValueError: it is no ONNX model.
    """
    from google.protobuf.message import DecodeError

    model = messages()["ModelProto"]()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX model ({error})") from None
    return model


def readers(graph: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each tensor; one that reads it twice, twice."""
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
    return found


def replace_nodes(model: Any, nodes: Sequence[Any]) -> None:
    """Make these the graph's nodes, some of them ONNX Runtime's own operators."""
    # Clearing the list empties its nodes.
    copies = [messages()["NodeProto"].FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    if all(entry.domain != CONTRIB for entry in model.opset_import):
        model.opset_import.add(domain=CONTRIB, version=1)


def external_arrays(model: Any, weights: np.ndarray, file: str) -> dict[str, np.ndarray]:
    """Return the model's tensors that lie in a file of weights, as views of its bytes.

    Args:
        model: a ModelProto.
        weights: the whole file [bytes] u8, such as a memory map.
        file: its name in the model.

    Raises:
        ValueError: a tensor lies in another file, past the end, or is of an unknown type.
    """
    arrays = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != EXTERNAL:
            continue
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where["location"] != file or tensor.data_type not in _DTYPES:
            raise ValueError(f"tensor {tensor.name!r} is not in {file}, or of an unknown type")
        dtype = np.dtype(_DTYPES[tensor.data_type])
        offset, size = int(where.get("offset", 0)), math.prod(tensor.dims) * dtype.itemsize
        if not 0 <= offset <= offset + size <= len(weights):
            raise ValueError(f"tensor {tensor.name!r} ends after {file}")
        arrays[tensor.name] = weights[offset : offset + size].view(dtype).reshape(tensor.dims)
    return arrays
