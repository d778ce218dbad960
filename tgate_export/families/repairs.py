"""Configurations as diffusers has them in the end: not always as on disk (no torch).

Classes fill in what a configuration leaves out, and the constructors of Stable Diffusion's
pipelines correct what trainers of 2022 wrote.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What a class takes for an entry that we read and that its configuration may leave out.
CLASS_DEFAULTS: dict[str, dict[str, Any]] = {
    "diffusers.AutoencoderKL": {"latent_channels": 4, "force_upcast": True},
    "diffusers.AutoencoderKLTemporalDecoder": {"latent_channels": 4, "force_upcast": True},
    "diffusers.UNet2DConditionModel": {"in_channels": 4, "cross_attention_dim": 1280},
    "diffusers.UNetSpatioTemporalConditionModel": {
        "in_channels": 8,
        "out_channels": 4,
        "cross_attention_dim": 1024,
        "num_frames": 25,
    },
    "diffusers.PixArtTransformer2DModel": {"in_channels": 4, "patch_size": 2, "sample_size": 128},
    "transformers.CLIPTextModel": {
        "max_position_embeddings": 77,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
    },
    "transformers.CLIPTextModelWithProjection": {
        "max_position_embeddings": 77,
        "num_hidden_layers": 12,
        "projection_dim": 512,
        "vocab_size": 49408,
    },
    "transformers.CLIPVisionModelWithProjection": {"projection_dim": 512},
    "transformers.T5EncoderModel": {"d_model": 512, "vocab_size": 32128},
}

# Those whose constructors correct their scheduler and their UNet; diffusers' others take them as
# they are.
_CORRECTING = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")


def effective_config(
    pipeline: str, component: str, class_name: str | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a component's configuration as a pipeline of diffusers has it.

    Args:
        pipeline: the pipeline's class.
        component: the component's folder.
        class_name: "library.Class" of a component with weights.
        config: what its file holds.
    """
    effective = {**CLASS_DEFAULTS.get(class_name or "", {}), **config}
    if pipeline in _CORRECTING:
        if component == "scheduler":
            # Whatever its class: one without these entries ignores them.
            effective.update(steps_offset=1, clip_sample=False)
        elif component == "unet" and _of_2022(effective):
            effective["sample_size"] = 64
    return effective


def _of_2022(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet was saved before 0.9, when 32 stood for the 64 that it was trained at."""
    saved_by = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version")))
    size = unet.get("sample_size")
    return (
        saved_by is not None
        and (int(saved_by[1]), int(saved_by[2])) < (0, 9)
        and isinstance(size, int)
        and size < 64
    )
