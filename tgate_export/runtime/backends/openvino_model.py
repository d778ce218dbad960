"""OpenVINO models that share weights: read from one memory map, packed once.

OpenVINO packs weights into layouts of its own. It does so once for every compiled model, but only
once for a weight that lies at one address, wherever in a model it occurs. So graphs that share
weights become one model, each the body of an `If` of its own.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from tgate_export.runtime.backends.onnx_file import external_arrays
from tgate_export.runtime.backends.weight_file import WeightMap


def read_model(ov: Any, onnx: Any, weights: WeightMap | None) -> Any:
    """Return an ONNX graph as a model whose weights are views of a map, which has to outlive it.

    The reader opens no file and guesses no format: it gets the graph in memory, with its weights as
    inputs that become constants afterwards.

    Args:
        ov: the openvino module.
        onnx: the graph's ModelProto, as `read_graph` returns it; its weights are taken out.
        weights: the file in which the graph has its weights, if it has any.

    Raises:
        ValueError: the graph has weights that are not in that file.
    """
    from openvino.frontend import FrontEndManager

    arrays = {} if weights is None else external_arrays(onnx, weights.bytes, weights.name)
    _make_inputs(onnx.graph, arrays)
    reader = FrontEndManager().load_by_framework("onnx")
    model = reader.convert(reader.load(io.BytesIO(onnx.SerializeToString())))
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name in arrays:
            tensor = ov.Tensor(arrays[name], shared_memory=True)
            mapped = ov.opset13.constant(tensor, name=name, shared_memory=True)
            ov.utils.replace_node(parameter, mapped)
            model.remove_parameter(parameter)
    return model


def _make_inputs(graph: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Make inputs of a GraphProto's tensors of these names."""
    kept = []
    for tensor in graph.initializer:
        if tensor.name not in arrays:
            kept.append(type(tensor).FromString(tensor.SerializeToString()))
            continue
        kind = graph.input.add(name=tensor.name).type.tensor_type
        kind.elem_type = tensor.data_type
        kind.shape.SetInParent()
        for side in tensor.dims:
            kind.shape.dim.add(dim_value=side)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def keep_sinusoids(model: Any) -> None:
    """Let a model that is compiled for bf16 compute sines and cosines of its inputs in fp32.

    Timesteps, sizes and their products with frequencies reach 1000 and more, where bf16 has steps
    of 4 radians. OpenVINO's CPU plugin lowers no layer between the last matrix product or
    convolution and an output, so they become outputs, which nobody reads.

    Args:
        model: an openvino model, changed in place.
    """
    waves = [node for node in model.get_ops() if node.get_type_name() in ("Sin", "Cos")]
    if waves:
        model.add_outputs([node.output(0) for node in waves])


def tensor_name(graph: str, name: str) -> str:
    """Return what `join` calls a graph's input or output."""
    return f"{graph}/{name}"


def join(ov: Any, models: Mapping[str, Any]) -> Any:
    """Return one model of several, which it uses up.

    An input with the graph's name, a boolean, says whether a graph is run. Where it is, the others
    that begin with its name, see `tensor_name`, are its inputs and outputs; where it is not, its
    inputs are not read and its outputs are empty.

    Args:
        ov: the openvino module.
        models: by graph.
    """
    op = ov.opset13
    parameters, results = [], []
    for graph, model in models.items():
        _decompose_group_norms(ov, model)
        runs = op.parameter([], bool)
        runs.output(0).set_names({graph})
        parameters.append(runs)
        branch = op.if_op(runs)
        nothing = [
            op.result(
                op.constant(np.zeros([0] * len(out.partial_shape), out.element_type.to_dtype()))
            )
            for out in model.outputs
        ]
        branch.set_then_body(model)
        branch.set_else_body(ov.Model(nothing, [], f"no {graph}"))
        for inner in model.get_parameters():
            outer = op.parameter(inner.get_partial_shape(), inner.get_element_type())
            outer.output(0).set_names({tensor_name(graph, inner.output(0).any_name)})
            parameters.append(outer)
            branch.set_input(outer.output(0), inner, None)
        for index, (inner, empty) in enumerate(zip(model.get_results(), nothing, strict=True)):
            branch.set_output(inner, empty)
            outer = op.result(branch.output(index))
            outer.output(0).set_names({tensor_name(graph, inner.output(0).any_name)})
            results.append(outer)
    return ov.Model(results, parameters, " ".join(models))


def _decompose_group_norms(ov: Any, model: Any) -> None:
    """Write group norms as what OpenVINO's CPU plugin does, but not in the body of an `If`."""
    op = ov.opset13
    for node in model.get_ops():
        if node.get_type_name() != "GroupNormalization":
            continue
        sample, scale, bias = (entry.get_source_output() for entry in node.inputs())
        attributes = node.get_attributes()
        groups = op.constant(np.array([0, attributes["num_groups"], -1], np.int64))
        normal = op.mvn(
            op.reshape(sample, groups, special_zero=True),
            op.constant(np.array([2], np.int64)),
            normalize_variance=True,
            eps=attributes["epsilon"],
            eps_mode="INSIDE_SQRT",
        )
        normal = op.reshape(normal, op.shape_of(sample), special_zero=False)
        # Channels are the second axis, whatever follows.
        axes = op.constant(np.arange(1, len(sample.get_partial_shape()) - 1, dtype=np.int64))
        for apply, factor in ((op.multiply, scale), (op.add, bias)):
            normal = apply(normal, op.unsqueeze(factor, axes))
        ov.utils.replace_node(node, normal)
