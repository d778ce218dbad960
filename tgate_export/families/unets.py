"""What several families of UNets and CLIP text encoders have in common (no torch)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tgate_export.common.errors import ModelError
from tgate_export.families.spec import TokenizerSpec
from tgate_export.families.tokenizer_files import longest_text
from tgate_export.methods.conditioning import GUIDANCE_SCALE

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource


CLIP_WIDTH = 512  # transformers' default


def clip_tokens(source: ModelSource, suffix: str = "") -> int:
    """Return how many tokens a CLIP text encoder is given.

    As many as its tokenizer says (`model_max_length`), as in diffusers; no more than it has
    positions for, which fails there.
    """
    positions = int(source.config(f"text_encoder{suffix}")["max_position_embeddings"])
    longest = longest_text(source.folder(f"tokenizer{suffix}"))
    return positions if longest is None else min(longest, positions)


def clip_tokenizers(
    source: ModelSource, suffixes: Sequence[str] = ("",)
) -> tuple[TokenizerSpec, ...]:
    """Return the tokenizers of CLIP text encoders, whose outputs lie side by side.

    Args:
        source: the pipeline.
        suffixes: how the names of its text encoders and of their tokenizers end.
    """
    found, column = [], 0
    for suffix in suffixes:
        width = int(source.config(f"text_encoder{suffix}").get("hidden_size", CLIP_WIDTH))
        found.append(
            TokenizerSpec(
                f"input_ids{suffix}",
                f"tokenizer{suffix}",
                "transformers.CLIPTokenizer",
                f"text_encoder{suffix}",
                clip_tokens(source, suffix),
                columns=(column, column + width),
            )
        )
        column += width
    return tuple(found)


def clip_layers(source: ModelSource, encoder: str) -> int:
    """Return how many layers a CLIP text encoder has."""
    return int(source.config(encoder)["num_hidden_layers"])


def context_width(unet: Mapping[str, Any]) -> int:
    """Return the width of what a UNet's cross-attention reads, which a list gives a level."""
    width = unet.get("cross_attention_dim", 1280)
    return int(width[0] if isinstance(width, (list, tuple)) else width)


def guidance_embedding(unet: Any, conditions: Mapping[str, Any], dtype: Any) -> Any:
    """Return sines and cosines of the guidance scale [B, time_cond_proj_dim], None if unused.

    Of the sample's dtype and not the weights', which may be computed with in another.
    arXiv 2310.04378, and `get_guidance_scale_embedding(guidance_scale - 1)` of diffusers.
    """
    width = unet.config.time_cond_proj_dim
    if width is None:
        return None
    import torch

    half = width // 2
    frequencies = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * (conditions[GUIDANCE_SCALE] - 1.0)[:, None] * frequencies
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, width % 2)).to(dtype)


def check_unet(source: ModelSource, supported: Mapping[str, object]) -> None:
    """Refuse a UNet that takes more than the noisy sample, the time and what is `supported`.

    Raises:
        ModelError: names the entry of its configuration.
    """
    unet, vae = source.config("unet"), source.config("vae")
    for key in (
        "addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type",
        "encoder_hid_dim",
    ):  # fmt: skip
        if unet.get(key) != supported.get(key):
            raise ModelError(
                f"{source.model}: its UNet takes more than text and time ({key} is "
                f"{unet.get(key)!r}), which is not supported"
                if unet.get(key) is not None
                else f"{source.model}: its UNet lacks {key} {supported[key]!r}, which a "
                f"{source.pipeline} needs: it belongs to another pipeline"
            )
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise ModelError(
            f"{source.model}: its UNet takes {unet.get('in_channels')} channels and its VAE gives "
            f"{vae.get('latent_channels')}: inpainting and other image-conditioned UNets are not "
            "supported"
        )
