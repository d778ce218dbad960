"""Which of a graph's constants are weights of a module's layers: what a LoRA may change.

torch's exporter names a constant for the parameter that it is. Of most linear layers, which ONNX
multiplies by from the other side, it stores the transpose, under a name of no meaning: where that
came from is in the graph before it is optimized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.onnx import ONNXProgram

from tgate_export.adapters.apply import layer_weights
from tgate_export.bundle.layers_file import Constant, Layer
from tgate_export.common.errors import VerificationError
from tgate_export.export.quick_export import patched

if TYPE_CHECKING:
    import onnx_ir

_META = "layer constants"  # key of a model's metadata in memory, which no file has


@dataclass(frozen=True)
class LayerConstant:
    """A constant of a graph that is a layer's weight.

    Attributes:
        weight: the layer's.
        transposed: whether the constant is its transpose.
        readers: how many nodes' inputs it is.
    """

    weight: torch.Tensor
    transposed: bool
    readers: int


@contextlib.contextmanager
def following_weights(module: nn.Module) -> Iterator[None]:
    """Note which constants of a model that is exported here are weights of which layers.

    No two of them are merged for being equal: a LoRA may change one alone. See `LayerConstants`.

    Args:
        module: what is exported.
    """
    optimize = ONNXProgram.optimize
    found: dict[str, LayerConstant] = {}

    def note_and_optimize(program: ONNXProgram) -> None:
        found.update(_constants(program.model, module))
        optimize(program)
        program.model.meta[_META] = found

    with patched(ONNXProgram, "optimize", note_and_optimize), _apart(found):
        yield


@contextlib.contextmanager
def _apart(names: Container[str | None]) -> Iterator[None]:
    """Let the optimizer merge no constants of these names.

    Where its internals are no more, `LayerConstants` finds one missing, if any were equal.
    """
    try:
        from onnx_ir.passes.common import initializer_deduplication as deduplication

        skip = deduplication._should_skip_initializer
    except (ImportError, AttributeError):
        yield
        return

    def skip_weights(value: onnx_ir.Value, size_limit: int) -> bool:
        return value.name in names or skip(value, size_limit)

    with patched(deduplication, "_should_skip_initializer", skip_weights):
        yield


def _constants(model: onnx_ir.Model, module: nn.Module) -> Iterator[tuple[str, LayerConstant]]:
    """Yield the names that layers' weights, and transposes of them, have in a new graph."""
    weights = {id(weight) for weight in layer_weights(module).values()}
    # A layer may be in a module by several names, and the graph has one of them.
    for name, parameter in module.named_parameters(remove_duplicate=False):
        value = model.graph.initializers.get(name)
        if value is None or id(parameter) not in weights:
            continue
        plain = 0
        for node, _ in value.uses():
            if node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]:
                turned = node.outputs[0]
                assert turned.name is not None
                yield turned.name, LayerConstant(parameter, True, len(turned.uses()))
            else:
                plain += 1
        if plain:
            yield name, LayerConstant(parameter, False, plain)


class LayerConstants:
    """Where the layers of components have their weights in graphs that are exported.

    Args:
        components: by name.
    """

    def __init__(self, components: Mapping[str, nn.Module]) -> None:
        self._components = components
        self._constants: dict[int, list[Constant]] = {}

    def add(self, graph: str, model: onnx_ir.Model) -> None:
        """Add a graph, and check that it has the weights that it reads.

        Args:
            graph: its name.
            model: exported by `export_graph`; its weights still are the components' own.

        Raises:
            VerificationError: a weight is no constant, or one that does not equal it to the bit, or
                something else was made of it, too: the constant has other readers than before.
        """
        noted: dict[str, LayerConstant] = model.meta[_META]
        for name, constant in noted.items():
            value = model.graph.initializers.get(name)
            same = value is not None and len(value.uses()) == constant.readers
            if value is None or not (same and _equal(value.const_value, constant)):
                raise VerificationError(f"graph {graph!r} has no weight {name!r} of the model")
            self._constants.setdefault(id(constant.weight), []).append(
                Constant(graph=graph, initializer=name, transposed=constant.transposed)
            )

    def layers(self) -> dict[str, dict[str, Layer]]:
        """Return the layers by component and path."""
        return {
            name: {
                path: Layer(
                    shape=tuple(weight.shape),
                    constants=tuple(self._constants.get(id(weight), ())),
                )
                for path, weight in layer_weights(component).items()
            }
            for name, component in self._components.items()
        }


def _equal(tensor: Any, constant: LayerConstant) -> bool:
    """Whether a tensor of a graph is a weight, or its transpose, to the bit."""
    weight = constant.weight.detach()
    expected = np.ascontiguousarray((weight.T if constant.transposed else weight).numpy())
    found = np.ascontiguousarray(tensor.numpy())
    return (found.shape, found.dtype) == (expected.shape, expected.dtype) and bool(
        np.array_equal(found.reshape(-1).view(np.uint8), expected.reshape(-1).view(np.uint8))
    )
