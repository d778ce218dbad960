"""The image encoder and the decoder of a video as modules to export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tgate_export.families.modules import latent_space


class ClipImageEncoder(nn.Module):
    """Images [B, H, W, 3] f32 in [0, 1] to `image_embeds` [B, 1, D], as diffusers' for a video."""

    def __init__(self, image_encoder: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.image_encoder: Any = image_encoder
        self.mean, self.std = mean, std
        self.compute_dtype = next(image_encoder.parameters()).dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scale the image to the encoder's size and encode it."""
        from diffusers.pipelines.stable_video_diffusion import (
            pipeline_stable_video_diffusion as diffusers_svd,
        )

        side = self.image_encoder.config.image_size
        pixels = 2 * image.permute(0, 3, 1, 2) - 1
        scaled = diffusers_svd._resize_with_antialiasing(pixels, (side, side))
        mean, std = (torch.tensor(value)[:, None, None] for value in (self.mean, self.std))
        normalized = ((scaled + 1) / 2 - mean) / std
        embeds: torch.Tensor = self.image_encoder(normalized.to(self.compute_dtype)).image_embeds
        return embeds[:, None]


class VideoVaeDecoder(nn.Module):
    """Latents [B, F * C, h, w] f32 to images [B, F, H, W, 3] f32 in [0, 1]."""

    def __init__(self, vae: nn.Module, frames: int) -> None:
        super().__init__()
        self.vae = vae
        self.frames = frames
        self.scaling_factor = latent_space(vae, by_channel=False)[0][0]
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode all frames of a video at once, as diffusers does unless it is told otherwise."""
        frames = latents.unflatten(1, (self.frames, -1)).flatten(0, 1) / self.scaling_factor
        images = self.vae.decode(  # type: ignore[operator]
            frames.to(self.compute_dtype), num_frames=self.frames, return_dict=False
        )[0]
        images = (images.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return images.unflatten(0, (-1, self.frames)).contiguous()
