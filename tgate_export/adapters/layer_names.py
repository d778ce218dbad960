"""What trainers call the layers of a UNet and of CLIP (no torch).

Kohya writes `_` for the dots of a name, so that only the model itself can tell where they were: the
names of its layers are written as every trainer would, and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

# diffusers' names of modules -> LDM's and SGM's, in which kohya trains SDXL.
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
_DOWN = re.compile(r"down_blocks\.0\.resnets\.(\d+)\.")
_UP_ATTENTION = re.compile(r"up_blocks\.(\d+)\.attentions\.")
# What older versions of diffusers call the projections of CLIP's attention.
_CLIP_ONCE = re.compile(r"\.(q|k|v|out)_proj$")


def flat(name: str) -> str:
    """Write a name as kohya does; it says nothing of the processors of older diffusers."""
    return name.replace(".processor.", ".").replace(".", "_")


def layer_names(component: str, paths: Collection[str]) -> dict[str, str]:
    """Return the flat names of a model's layers -> their paths.

    Args:
        component: "unet" or a text encoder.
        paths: of its layers, as `named_modules` has them.
    """
    aliases = _unet_aliases if component == "unet" else _clip_aliases
    return {flat(alias): path for path, alias in aliases(paths)}


def _unet_aliases(paths: Collection[str]) -> Iterator[tuple[str, str]]:
    layers = 1 + max((int(found[1]) for path in paths if (found := _DOWN.match(path))), default=0)
    attending = {found[1] for path in paths if (found := _UP_ATTENTION.match(path))}
    for path in paths:
        named = [path]
        if (ldm := _ldm_name(path, layers, attending)) is not None:
            named.append(ldm)
        for name in named:
            yield path, name
            if name.endswith(".to_out.0"):
                yield path, name.removesuffix(".0")


def _ldm_name(path: str, layers: int, attending: Collection[str]) -> str | None:
    """Return LDM's name of a layer of a UNet; None where it has none.

    Args:
        path: diffusers' name.
        layers: residual blocks of a level on the way down.
        attending: indices of the levels on the way up that have attention.
    """
    if path in _ENDS:
        return _ENDS[path]
    found = _BLOCK.fullmatch(path)
    if found is None:
        return None
    part, level, kind, number, rest = found.groups()
    index, attention = int(number), int(kind == "attentions")
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    if part == "mid":
        return f"middle_block.{1 if attention else 2 * index}.{rest}"
    first = int(level) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers + 1}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.{2 if level in attending else 1}.{rest}"
    if part == "down":
        return f"input_blocks.{first + 1 + index}.{attention}.{rest}"
    return f"output_blocks.{first + index}.{attention}.{rest}"


def _clip_aliases(paths: Collection[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        # Of older versions of transformers, which put this before every name.
        for name in dict.fromkeys((path, f"text_model.{path.removeprefix('text_model.')}")):
            yield path, name
            if _CLIP_ONCE.search(name):
                yield path, _CLIP_ONCE.sub(r".to_\1", name)
