"""LoRA files' changes of a PyTorch model's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from tgate_export.adapters.change import LoraTensors, find_layers
from tgate_export.adapters.lora_file import Lora


def layer_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that a LoRA may change, of linear layers and convolutions, by path."""
    return {
        path: part.weight
        for path, part in module.named_modules()
        if isinstance(part, (nn.Linear, nn.Conv2d))
    }


def apply_loras(module: nn.Module, component: str, loras: Iterable[Lora]) -> None:
    """Change a component's weights by what LoRA files have for it, one file after another.

    Args:
        module: the component; nothing of it is written in place, since a weight may be a view of a
            file.
        component: its name.
        loras: the files.

    Raises:
        ModelError: a file is for another model, or its numbers are not finite.
    """
    weights = layer_weights(module)
    shapes = {path: tuple(weight.shape) for path, weight in weights.items()}
    for lora in loras:
        if component not in lora.layers:
            continue
        tensors = LoraTensors(lora)
        for path, layer in find_layers(lora, component, shapes).items():
            weight = weights[path]
            found = tensors.changed(weight.detach().numpy(), layer, path, component)
            weight.data = torch.from_numpy(found)
