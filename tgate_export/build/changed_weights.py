"""A unit's graphs and weights written again, with other values of some layers (no torch)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgate_export.adapters import lora_file
from tgate_export.adapters.change import LoraTensors, find_layers
from tgate_export.build.large_files import HashedFile, MappedFile
from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.layers_file import Layers
from tgate_export.bundle.manifest import File
from tgate_export.common.errors import BundleError
from tgate_export.common.progress import Progress
from tgate_export.export.weights import WeightFile
from tgate_export.runtime.backends.onnx_check import read_graph
from tgate_export.runtime.backends.onnx_file import EXTERNAL, FLOAT16, FLOAT32

_DTYPES = {FLOAT32: "<f4", FLOAT16: "<f2"}


@dataclass(frozen=True)
class LayerChange:
    """What becomes of a layer's weight.

    Attributes:
        component: that the layer is of.
        path: of the layer.
        shape: of its weight.
        loras: what changes it, one after another.
    """

    component: str
    path: str
    shape: tuple[int, ...]
    loras: tuple[tuple[LoraTensors, lora_file.Layer], ...]


@dataclass(frozen=True)
class ConstantChange:
    """What becomes of a constant that is a layer's weight, or its transpose."""

    layer: LayerChange
    transposed: bool

    def applied(self, stored: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the constant after the change."""
        weight = stored.T if self.transposed else stored
        for tensors, layer in self.layer.loras:
            weight = tensors.changed(weight, layer, self.layer.path, self.layer.component)
        return weight.T if self.transposed else weight


# By graph and initializer.
Changes = Mapping[tuple[str, str], ConstantChange]


@dataclass(frozen=True)
class ChangedTensor:
    """A constant of a graph that has other values than before.

    Attributes:
        component: whose weight it is.
        layer: path of the layer.
        graph: name of the graph.
        tensor: name of the constant.
        shape: as it is stored.
    """

    component: str
    layer: str
    graph: str
    tensor: str
    shape: tuple[int, ...]


def layer_changes(loras: Sequence[lora_file.Lora], layers: Layers) -> list[LayerChange]:
    """Return which of a bundle's layers LoRA files change.

    Args:
        loras: the files, in the order in which they are applied.
        layers: the bundle's.

    Raises:
        ModelError: a file is for another model.
    """
    found: dict[tuple[str, str], list[tuple[LoraTensors, lora_file.Layer]]] = {}
    for lora in loras:
        tensors = LoraTensors(lora)
        for component in lora.layers:
            shapes = {path: layer.shape for path, layer in layers[component].items()}
            for path, layer in find_layers(lora, component, shapes).items():
                found.setdefault((component, path), []).append((tensors, layer))
    return [
        LayerChange(component, path, layers[component][path].shape, tuple(changes))
        for (component, path), changes in found.items()
    ]


def constant_changes(changes: Sequence[LayerChange], layers: Layers) -> Changes:
    """Return what becomes of which constants of a bundle's graphs."""
    return {
        (constant.graph, constant.initializer): ConstantChange(change, constant.transposed)
        for change in changes
        for constant in layers[change.component][change.path].constants
    }


@dataclass(frozen=True)
class _Written:
    """Where data is in the new file, in bytes, and whether it is other than before."""

    offset: int
    length: int
    differs: bool


class UnitWriter:
    """Writes graphs that share a weights file, and the file, as an export would.

    What is equal is stored once, and what no longer is gets a place of its own. One weight at a
    time is in memory.

    Args:
        bundle: where they are.
        weights: the file, relative to the bundle.
        changes: of the constants of its graphs.
    """

    def __init__(self, bundle: Bundle, weights: str, changes: Changes) -> None:
        self._bundle, self._weights, self._changes = bundle, weights, changes
        self._written: dict[object, _Written] = {}
        self._changed: list[ChangedTensor] = []
        self._done = self._kept = 0  # bytes: of all, and of what stays

    def write(
        self, folder: Path, progress: Progress
    ) -> tuple[dict[str, File], tuple[ChangedTensor, ...]]:
        """Write them; return the hashes of the files, and what is other than before.

        Args:
            folder: the new bundle's, which has the folders of the old one.
            progress: told how far it is.

        Raises:
            BundleError: a graph cannot be read, or lacks a constant that is to be changed.
            ModelError: weights would be infinite or no numbers.
            OSError: the folder cannot be written.
        """
        manifest = self._bundle.manifest
        total = manifest.files[self._weights].bytes
        files: dict[str, File] = {}
        source = MappedFile(self._bundle.file(self._weights))
        with HashedFile(folder / self._weights) as target:
            weights = WeightFile(folder / self._weights, target)
            for name, graph in manifest.graphs.items():
                if graph.weights != self._weights:
                    continue
                model = read_graph(self._bundle, name)
                left = {tensor for graph_name, tensor in self._changes if graph_name == name}
                for tensor in model.graph.initializer:
                    left.discard(tensor.name)
                    if tensor.data_location == EXTERNAL:
                        self._move(name, tensor, source, weights)
                        progress.advance(min(self._done, total), total)
                    else:
                        self._change_inline(name, tensor)
                if left:
                    raise BundleError(
                        f"{self._bundle.file(graph.file)} has no {min(left)!r}, which is to be "
                        "changed: build the bundle again"
                    )
                content = model.SerializeToString()
                (folder / graph.file).write_bytes(content)
                files[graph.file] = File(
                    sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)
                )
            files[self._weights] = target.hashed()
        return files, tuple(self._changed)

    def _move(self, graph: str, tensor: Any, source: MappedFile, weights: WeightFile) -> None:
        """Write an initializer's data, and let it say where that is."""
        where = {entry.key: entry for entry in tensor.external_data}
        place = int(where["offset"].value), int(where["length"].value)
        found = self._changes.get((graph, tensor.name))
        # Graphs share what stays by its place, and what is changed by its layer.
        key: object = place
        if found is not None:
            key = found.layer.component, found.layer.path, found.transposed
        if key not in self._written:
            if found is None:
                self._kept += place[1]
                if self._kept > self._bundle.manifest.files[self._weights].bytes:
                    raise BundleError(
                        f"{self._bundle.file(self._weights)} has weights that overlap: build the "
                        "bundle again"
                    )
            before = source.read(*place)
            after, differs = before, False
            if found is not None:
                after = np.frombuffer(_changed(tensor, before, found), np.uint8)
                differs = not np.array_equal(after, before)
            self._written[key] = _Written(*weights.store(after), differs)
            source.forget(*place)
            self._done += place[1]
        written = self._written[key]
        where["offset"].value, where["length"].value = str(written.offset), str(written.length)
        self._note(graph, tensor, found, differs=written.differs)

    def _change_inline(self, graph: str, tensor: Any) -> None:
        """Change an initializer that is so small that its graph has it."""
        if (found := self._changes.get((graph, tensor.name))) is not None:
            after = _changed(tensor, tensor.raw_data, found)
            self._note(graph, tensor, found, differs=after != tensor.raw_data)
            tensor.raw_data = after

    def _note(
        self, graph: str, tensor: Any, found: ConstantChange | None, *, differs: bool
    ) -> None:
        if found is not None and differs:
            self._changed.append(
                ChangedTensor(
                    found.layer.component, found.layer.path, graph, tensor.name, tuple(tensor.dims)
                )
            )


def _changed(tensor: Any, data: bytes | NDArray[np.uint8], found: ConstantChange) -> bytes:
    """Return an initializer's data after its change."""
    shape = tuple(tensor.dims)
    expected = found.layer.shape[::-1] if found.transposed else found.layer.shape
    dtype = np.dtype(_DTYPES.get(tensor.data_type, "V1"))
    if shape != expected or len(data) != math.prod(shape) * dtype.itemsize:
        raise BundleError(
            f"{tensor.name!r} of a graph is no weight {list(expected)}: build the bundle again"
        )
    return found.applied(np.frombuffer(data, dtype).reshape(shape)).tobytes()
