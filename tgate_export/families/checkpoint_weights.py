"""One component out of a checkpoint's file, renamed by diffusers' own converters (torch).

Tensors are views of the file, mapped into memory: until `convert` makes them of another precision
nothing is there twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from torch import nn

from tgate_export.common.errors import ModelError, first_line
from tgate_export.families.checkpoint_parts import Part
from tgate_export.families.vae import one_less

Tensors = dict[str, torch.Tensor]

# What diffusers once called the parts of a VAE's attention.
_ONCE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.")
# Buffers of CLIP's, and parts of it that no pipeline reads.
_UNUSED = re.compile(r"(^|\.)(position_ids|logit_scale|text_projection\.weight)$")


def load_part(cls: Any, part: Part, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Load a component from a checkpoint.

    Args:
        cls: its class, of diffusers or transformers.
        part: where it is.
        config: the entries of its configuration that the class declares.
        dtype: of its weights; `convert` makes them so where this returns other ones.

    Raises:
        ModelError: tensors are missing, left over, of other shapes, or cannot be read.
    """
    load = _diffusers if cls.__module__.startswith("diffusers") else _transformers
    return load(cls, part, config, dtype)


def _diffusers(cls: Any, part: Part, config: Mapping[str, Any], _dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        module: Any = cls.from_config(config)
    from_ldm = _vae_from_ldm if cls.__name__ == "AutoencoderKL" else _unet_from_ldm
    renames = {"ldm": from_ldm, "taesd": _from_taesd}
    tensors = _renamed(renames.get(part.layout, _from_diffusers), part, module.config)
    if cls.__name__ == "AutoencoderTiny" and not any(key.startswith("encoder.") for key in tensors):
        module.encoder = nn.Identity()  # a decoder alone
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    module.load_state_dict(_fitted(part, tensors, shapes), assign=True)
    loaded: nn.Module = module
    return loaded


def _transformers(cls: Any, part: Part, config: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    whole = cls.config_class(**config)
    rename = _from_open_clip if part.layout == "open-clip" else _from_clip
    projects = cls.__name__.endswith("WithProjection")
    kept = {
        key: tensor
        for key, tensor in _renamed(rename, part, whole).items()
        if (projects and key == "text_projection.weight")
        or not (_UNUSED.search(key) or _layer(key) >= whole.num_hidden_layers)
    }
    try:
        model, report = cls.from_pretrained(
            None, config=whole, state_dict=kept, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # of many classes
        raise _unlike(part, first_line(error)) from error
    for what, names in (
        ("lacks", "missing_keys"),
        ("has other shapes of", "mismatched_keys"),
        ("has, as well,", "unexpected_keys"),
    ):
        if found := sorted(map(str, report[names])):
            raise _unlike(part, f"it {what} {found[0]} ({len(found)} in all)")
    loaded: nn.Module = model
    return loaded


def _renamed(rename: Callable[[Part, Tensors, Any], Tensors], part: Part, config: Any) -> Tensors:
    """Return a part's tensors, mapped, by the names of diffusers and transformers."""
    try:
        with safe_open(part.file, framework="pt") as file:
            keys = [key for key in file.keys() if key.startswith(part.prefix)]  # noqa: SIM118
            return rename(part, {key: file.get_tensor(key) for key in keys}, config)
    except Exception as error:  # safetensors' own, and what a converter stumbles over
        raise ModelError(f"cannot load {part.file}: {first_line(error)}") from error


def _unet_from_ldm(part: Part, tensors: Tensors, config: Any) -> Tensors:
    prefix = single_file_utils.LDM_UNET_KEY
    plain = {prefix + key.removeprefix(part.prefix): value for key, value in tensors.items()}
    guidance = plain.pop(f"{prefix}time_embed.cond_proj.weight", None)
    converted: Tensors = single_file_utils.convert_ldm_unet_checkpoint(plain, config)
    if guidance is not None:  # which the converter does not know
        converted["time_embedding.cond_proj.weight"] = guidance
    return converted


def _vae_from_ldm(part: Part, tensors: Tensors, config: Any) -> Tensors:
    plain = {f"vae.{key.removeprefix(part.prefix)}": value for key, value in tensors.items()}
    converted: Tensors = single_file_utils.convert_ldm_vae_checkpoint(plain, config)
    return converted


def _from_clip(part: Part, tensors: Tensors, _config: Any) -> Tensors:
    plain = {key.removeprefix(part.prefix): value for key, value in tensors.items()}
    # Early merges left this out.
    return {
        key if key.startswith("text_") else f"text_model.{key}": value
        for key, value in plain.items()
    }


def _from_open_clip(part: Part, tensors: Tensors, config: Any) -> Tensors:
    model = SimpleNamespace(config=config)
    converted: Tensors = single_file_utils.convert_open_clip_checkpoint(model, tensors, part.prefix)
    return converted


def _from_taesd(_part: Part, tensors: Tensors, _config: Any) -> Tensors:
    return {f"decoder.layers.{one_less(key)}": value for key, value in tensors.items()}


def _from_diffusers(part: Part, tensors: Tensors, _config: Any) -> Tensors:
    def now(key: str) -> str:
        name = key.removeprefix(part.prefix)
        return _ATTENTION.sub(lambda found: f"{found[1]}{_ONCE[found[2]]}.", name)

    return {now(key): tensor for key, tensor in tensors.items()}


def _fitted(part: Part, tensors: Tensors, shapes: Mapping[str, torch.Size]) -> Tensors:
    """Return tensors of exactly these names and shapes.

    A convolution of a single pixel is a linear layer: which of them a file has says nothing.
    """
    fitted = {}
    for key, tensor in tensors.items():
        wanted = shapes.get(key)
        if wanted is None:
            continue
        if [side for side in tensor.shape if side > 1] == [side for side in wanted if side > 1]:
            fitted[key] = tensor.reshape(wanted)
        else:
            raise _unlike(part, f"{key} is {list(tensor.shape)}, expected {list(wanted)}")
    if missing := sorted(shapes.keys() - fitted.keys()):
        raise _unlike(part, f"it lacks {missing[0]} ({len(missing)} in all)")
    if left := sorted(tensors.keys() - shapes.keys()):
        raise _unlike(part, f"it has {left[0]} as well ({len(left)} in all)")
    return fitted


def _layer(key: str) -> int:
    """Return which layer of a text encoder a tensor is of: some pipelines end before the last."""
    found = re.search(r"encoder\.layers\.(\d+)\.", key)
    return int(found[1]) if found else -1


def _unlike(part: Part, what: str) -> ModelError:
    return ModelError(
        f"the weights {part.prefix}* in {part.file} are not those of its configuration: {what}"
    )
