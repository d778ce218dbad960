"""LoRA files' changes of a model's weights (torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from safetensors import safe_open
from torch import nn

from tgate_export.adapters.layer_names import flat, layer_names
from tgate_export.adapters.lora_file import Layer, Lora
from tgate_export.common.errors import ModelError, first_line


def apply_loras(module: nn.Module, component: str, loras: Iterable[Lora]) -> None:
    """Change a component's weights by what LoRA files have for it, in their order.

    `weight += scale * alpha / rank * up @ down` is computed in fp32, one layer at a time, and
    rounded to the weight's own type (arXiv 2106.09685, section 4.1).

    Args:
        module: the component; nothing of it is written in place, since a weight may be a view of a
            file.
        component: its name.
        loras: the files.

    Raises:
        ModelError: a file is for another model, or its numbers are not finite.
    """
    for lora in loras:
        if layers := lora.layers.get(component):
            _apply(module, component, lora, layers)


def _apply(module: nn.Module, component: str, lora: Lora, layers: Mapping[str, Layer]) -> None:
    weights = {
        path: part.weight
        for path, part in module.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d))
    }
    targets = _targets(component, lora, layers, weights)
    try:
        with safe_open(lora.path, framework="pt") as file:
            for path, layer in targets.items():
                down, up = (file.get_tensor(key).float() for key in (layer.down, layer.up))
                mid = file.get_tensor(layer.mid).float() if layer.mid else None
                weight = weights[path]
                change = _product(up, down, mid).reshape(weight.shape)
                exact = weight.data.float().add(change, alpha=lora.factor(layer))
                changed = exact.to(weight.dtype)
                if not changed.isfinite().all():
                    raise ModelError(
                        f"lora {lora.path}: with {layer.down} and {layer.up} weights of {path} in "
                        f"{component} are infinite or no numbers"
                    )
                weight.data = changed
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"cannot load lora {lora.path}: {first_line(error)}") from error


def _targets(
    component: str, lora: Lora, layers: Mapping[str, Layer], weights: Mapping[str, torch.Tensor]
) -> dict[str, Layer]:
    """Return what the file has for each path of a layer; refuse what fits none."""
    paths = layer_names(component, weights)
    unknown = [name for name in layers if flat(name) not in paths]
    if unknown:
        raise ModelError(
            f"lora {lora.path} is not for this model: its {component} has no layer {unknown[0]} "
            f"({len(unknown)} of {len(layers)} are not there)"
        )
    targets: dict[str, Layer] = {}
    for name, layer in layers.items():
        path = paths[flat(name)]
        if path in targets:
            raise ModelError(
                f"lora {lora.path} has two for {path} of {component}: {targets[path].down} and "
                f"{layer.down}"
            )
        targets[path] = layer
        shape = tuple(weights[path].shape)
        if not _fits(layer, shape):
            found = " and ".join(f"{key} {list(size)}" for key, size in layer.shapes.items())
            raise ModelError(
                f"lora {lora.path} is not for this model: {path} of {component} is {list(shape)}, "
                f"and the file has {found}"
            )
    return targets


def _fits(layer: Layer, weight: tuple[int, ...]) -> bool:
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


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape


def _product(up: torch.Tensor, down: torch.Tensor, mid: torch.Tensor | None) -> torch.Tensor:
    """Return the weight of the layers one after the other."""
    if mid is None:
        return up.flatten(1) @ down.flatten(1)
    return torch.einsum("op,pqhw,qi->oihw", up.flatten(1), mid, down.flatten(1))
