"""What LoRA files make of a model's weights (no torch): a build and `lora` change them alike."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from tgate_export.adapters.layer_names import flat, layer_names
from tgate_export.adapters.lora_file import Layer, Lora
from tgate_export.common.errors import ModelError, first_line
from tgate_export.common.safetensors_header import read_header, read_tensor

Shape = tuple[int, ...]


def find_layers(lora: Lora, component: str, shapes: Mapping[str, Shape]) -> dict[str, Layer]:
    """Return what a file has for each path of a component's layers; refuse what fits none.

    Args:
        lora: the file.
        component: its name.
        shapes: of the weights of all its layers, linear and convolutions, by path.

    Raises:
        ModelError: the file is for another model.
    """
    layers = lora.layers.get(component, {})
    paths = layer_names(component, shapes)
    unknown = [name for name in layers if flat(name) not in paths]
    if unknown:
        raise ModelError(
            f"lora {lora.path} is not for this model: its {component} has no layer {unknown[0]} "
            f"({len(unknown)} of {len(layers)} are not there)"
        )
    found: dict[str, Layer] = {}
    for name, layer in layers.items():
        path = paths[flat(name)]
        if path in found:
            raise ModelError(
                f"lora {lora.path} has two for {path} of {component}: {found[path].down} and "
                f"{layer.down}"
            )
        found[path] = layer
        if not _fits(layer, shapes[path]):
            theirs = " and ".join(f"{key} {list(size)}" for key, size in layer.shapes.items())
            raise ModelError(
                f"lora {lora.path} is not for this model: {path} of {component} is "
                f"{list(shapes[path])}, and the file has {theirs}"
            )
    return found


class LoraTensors:
    """A LoRA file's own tensors.

    Args:
        lora: the file.

    Raises:
        ModelError: it cannot be read.
    """

    def __init__(self, lora: Lora) -> None:
        self.lora = lora
        self._entries = read_header(lora.path).tensors

    def changed(
        self, weight: NDArray[np.floating], layer: Layer, path: str, component: str
    ) -> NDArray[np.floating]:
        """Return `weight + scale * alpha / rank * up @ down` (arXiv 2106.09685, section 4.1).

        It is computed in fp32, and rounded to the weight's own type once.

        Args:
            weight: of a linear layer [outputs, inputs], of a convolution [outputs, inputs, height,
                width]; as it is afterwards.
            layer: what the file has for it.
            path: of the layer, for messages.
            component: that it is of, for messages.

        Raises:
            ModelError: the file cannot be read, or weights would be infinite or no numbers.
        """
        with np.errstate(all="ignore"):  # what becomes of it is looked at
            try:
                down, up = self._tensor(layer.down), self._tensor(layer.up)
                mid = None if layer.mid is None else self._tensor(layer.mid)
                exact = _product(up, down, mid).reshape(weight.shape)
            except (OSError, ValueError) as error:  # another file is there now
                reason = first_line(error)
                raise ModelError(f"cannot load lora {self.lora.path}: {reason}") from error
            exact *= np.float32(self.lora.factor(layer))
            exact += weight
            found = exact.astype(weight.dtype, copy=False)
        if not np.isfinite(found).all():
            raise ModelError(
                f"lora {self.lora.path}: with {layer.down} and {layer.up} weights of {path} in "
                f"{component} are infinite or no numbers"
            )
        return found

    def _tensor(self, key: str) -> NDArray[np.float32]:
        if key not in self._entries:
            raise ValueError(f"{key} is gone")
        return read_tensor(self.lora.path, self._entries[key])


def _fits(layer: Layer, weight: Shape) -> bool:
    """Whether a change has a weight's shape; a convolution of one pixel is a linear layer."""
    down, up = _trimmed(layer.shapes[layer.down]), _trimmed(layer.shapes[layer.up])
    pixels = weight[2:]
    if layer.mid is not None:
        return (
            down == (layer.rank, weight[1])
            and up == (weight[0], layer.rank)
            and layer.shapes[layer.mid][2:] == (pixels or (1, 1))
        )
    return down == _trimmed((layer.rank, *weight[1:])) and up == (weight[0], layer.rank)


def _trimmed(shape: Shape) -> Shape:
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape


def _product(
    up: NDArray[np.float32], down: NDArray[np.float32], mid: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return the weight [outputs, inputs * height * width] of the layers one after the other."""
    up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
    if mid is None:
        return up @ down
    after = np.tensordot(up, mid, axes=(1, 0))  # [outputs, rank, height, width]
    return np.moveaxis(np.tensordot(after, down, axes=(1, 0)), -1, 1)
