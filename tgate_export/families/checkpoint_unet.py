"""What the shapes of a UNet's tensors say of it, to be compared with a configuration (no torch)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from tgate_export.families.checkpoint_parts import Layout
from tgate_export.families.unets import context_width

Shapes = Mapping[str, tuple[int, ...]]
Depths = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class UNet:
    """What shapes say of a UNet.

    Attributes:
        channels: that it takes and gives.
        widths: channels of its levels.
        down: transformer layers after every residual block of a level on the way down; 0 for none.
        middle: transformer layers in the middle; 0 for none.
        up: those of every level on the way up.
        context: width of the text that it reads.
        pooled: values beside the text that it takes (pooled text and sizes); 0 for none.
        guidance: values of an embedded guidance scale; 0 for none.
    """

    channels: tuple[int, int]
    widths: tuple[int, ...]
    down: Depths
    middle: int
    up: Depths
    context: int
    pooled: int = 0
    guidance: int = 0


def of_shapes(shapes: Shapes, layout: Layout) -> UNet | None:
    """Return what the shapes of a UNet's tensors say; None where they are no UNet's.

    Args:
        shapes: of its tensors, by their names without a prefix.
        layout: whose names they are: "ldm" or "diffusers".
    """
    try:
        return (_of_ldm if layout == "ldm" else _of_diffusers)(shapes)
    except (KeyError, IndexError, ValueError):
        return None


def of_config(config: Mapping[str, Any]) -> UNet | None:
    """Return what a UNet of a configuration has; None where it says too little."""
    try:
        return _of_config(config)
    except (KeyError, IndexError, ValueError, TypeError):
        return None


def differences(found: UNet, expected: UNet) -> str:
    """Say in which fields two differ, the first's value before the second's; "" in none."""
    pairs = (
        (field.name, getattr(found, field.name), getattr(expected, field.name))
        for field in fields(UNet)
    )
    return ", ".join(f"{name} {one}, not {other}" for name, one, other in pairs if one != other)


def depth_changes(found: UNet, expected: UNet) -> dict[str, Any] | None:
    """Return what to change in a configuration for a UNet with other numbers of layers.

    SSD-1B and Segmind Vega are SDXL with fewer transformer layers.

    Args:
        found: what shapes say.
        expected: what the configuration has.

    Returns:
        Its changed entries, none where nothing differs; None where more than depths differ.
    """
    if found == expected:
        return {}
    same = ("channels", "widths", "context", "pooled", "guidance")
    levels = ((*found.down, *found.up), (*expected.down, *expected.up))
    if (
        any(getattr(found, name) != getattr(expected, name) for name in same)
        or [len(level) for level in levels[0]] != [len(level) for level in levels[1]]
        # A level attends after each of its blocks, or after none.
        or [all(level) for level in levels[0]] != [any(level) for level in levels[1]]
        or [any(level) for level in levels[0]] != [any(level) for level in levels[1]]
        or found.middle not in (0, found.down[-1][-1])
    ):
        return None
    return {
        "transformer_layers_per_block": [_entry(level) for level in found.down],
        "reverse_transformer_layers_per_block": [_entry(level) for level in found.up],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if found.middle else "UNetMidBlock2D",
    }


def _entry(level: Sequence[int]) -> int | list[int]:
    return list(level) if len(set(level)) > 1 else max(1, level[0])


def _of_ldm(shapes: Shapes) -> UNet:
    widths, down = [shapes["input_blocks.0.0.weight"][0]], [[]]  # type: list[int], list[list[int]]
    for index in range(1, _count(shapes, "input_blocks.")):
        if f"input_blocks.{index}.0.op.weight" in shapes:
            widths.append(0)
            down.append([])
            continue
        widths[-1] = shapes[f"input_blocks.{index}.0.in_layers.2.weight"][0]
        down[-1].append(_depth(shapes, f"input_blocks.{index}.1."))
    layers = len(down[0]) + 1
    depths = [
        _depth(shapes, f"output_blocks.{index}.1.")
        for index in range(_count(shapes, "output_blocks."))
    ]
    return UNet(
        channels=(shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]),
        widths=tuple(widths),
        down=tuple(map(tuple, down)),
        middle=_depth(shapes, "middle_block.1."),
        up=tuple(tuple(depths[start : start + layers]) for start in range(0, len(depths), layers)),
        context=_context(shapes),
        pooled=shapes.get("label_emb.0.0.weight", (0, 0))[1],
        guidance=shapes.get("time_embed.cond_proj.weight", (0, 0))[1],
    )


def _of_diffusers(shapes: Shapes) -> UNet:
    def levels(blocks: str) -> Iterator[tuple[int, ...]]:
        for level in range(_count(shapes, blocks)):
            layers = _count(shapes, f"{blocks}{level}.resnets.")
            yield tuple(
                _depth(shapes, f"{blocks}{level}.attentions.{layer}.") for layer in range(layers)
            )

    down = tuple(levels("down_blocks."))
    return UNet(
        channels=(shapes["conv_in.weight"][1], shapes["conv_out.weight"][0]),
        widths=tuple(
            shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(len(down))
        ),
        down=down,
        middle=_depth(shapes, "mid_block.attentions.0."),
        up=tuple(levels("up_blocks.")),
        context=_context(shapes),
        pooled=shapes.get("add_embedding.linear_1.weight", (0, 0))[1],
        guidance=shapes.get("time_embedding.cond_proj.weight", (0, 0))[1],
    )


def _count(shapes: Shapes, prefix: str) -> int:
    """Return how many numbers follow a prefix, which must be 0, 1, 2 and so on."""
    found = {
        int(number[1])
        for key in shapes
        if (number := re.match(rf"{re.escape(prefix)}(\d+)\.", key))
    }
    if found != set(range(len(found))):
        raise ValueError(f"{prefix} has gaps")
    return len(found)


def _depth(shapes: Shapes, prefix: str) -> int:
    return _count(shapes, f"{prefix}transformer_blocks.")


def _context(shapes: Shapes) -> int:
    (width,) = {shape[1] for key, shape in shapes.items() if key.endswith("attn2.to_k.weight")}
    return width


def _of_config(config: Mapping[str, Any]) -> UNet:
    widths = tuple(config["block_out_channels"])
    layers = int(config.get("layers_per_block", 2))
    depth = config.get("transformer_layers_per_block", 1)
    down_depths = depth if isinstance(depth, list) else [depth] * len(widths)
    up_depths = config.get("reverse_transformer_layers_per_block") or down_depths[::-1]

    def levels(types: Sequence[str], depths: Sequence[Any], blocks: int) -> Depths:
        return tuple(
            tuple(each if isinstance(each, list) else [each] * blocks)
            if "CrossAttn" in kind
            else (0,) * blocks
            for kind, each in zip(types, depths, strict=True)
        )

    last = down_depths[-1]
    attends = config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn"
    return UNet(
        channels=(int(config.get("in_channels", 4)), int(config.get("out_channels", 4))),
        widths=widths,
        down=levels(config["down_block_types"], down_depths, layers),
        middle=(last[-1] if isinstance(last, list) else int(last)) if attends else 0,
        up=levels(config["up_block_types"], up_depths, layers + 1),
        context=context_width(config),
        pooled=int(config.get("projection_class_embeddings_input_dim") or 0),
        guidance=int(config.get("time_cond_proj_dim") or 0),
    )
