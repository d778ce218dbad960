"""A very small random TAESD, and its author's names of its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file

from tgate_export.families.tiny import randomized

WEIGHTS = "diffusion_pytorch_model.safetensors"


def save(folder: Path, channels: Sequence[int] = (8, 8), latent_channels: int = 4) -> None:
    """Save one whose latents have half the width and height of its images, or less."""
    blocks = tuple(range(1, len(channels) + 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        vae = AutoencoderTiny(
            encoder_block_out_channels=tuple(channels),
            decoder_block_out_channels=tuple(channels),
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks[::-1],
            latent_channels=latent_channels,
        )
        randomized(vae).save_pretrained(folder)


def authors_decoder(folder: Path) -> dict[str, torch.Tensor]:
    """Return the decoder's tensors as `taesd_decoder.safetensors` has them.

    `nn.Sequential(Clamp(), conv(4, 64), nn.ReLU(), Block(64, 64), ...)`.
    """
    named = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        if key.startswith("decoder.layers."):
            number, _, rest = key.removeprefix("decoder.layers.").partition(".")
            named[f"{int(number) + 1}.{rest}"] = tensor
    return named


def authors_encoder(folder: Path) -> dict[str, torch.Tensor]:
    """Return the encoder's tensors as `taesd_encoder.safetensors` has them."""
    tensors = load_file(folder / WEIGHTS)
    return {
        key.removeprefix("encoder.layers."): tensor
        for key, tensor in tensors.items()
        if key.startswith("encoder.layers.")
    }
