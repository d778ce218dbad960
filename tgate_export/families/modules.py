"""What a pipeline has besides its denoiser, as modules to export: text encoders, VAE decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def skipping(
    hidden_states: Sequence[torch.Tensor],
    clip_skip: torch.Tensor | None,
    last: int,
    skips: int,
) -> torch.Tensor:
    """Choose a layer for every sample.

    Args:
        hidden_states: [B, T, D] of the embeddings and of every layer after them.
        clip_skip: [B] i64, how many layers before the last one to stop; 0 .. `skips`. None, as
            graphs without that input have it, for 0.
        last: which is the last one, as a negative index.
        skips: the most that may be skipped.

    Returns:
        `hidden_states[last - clip_skip[b]][b]` for every b, [B, T, D].
    """
    if clip_skip is None:
        return hidden_states[last]
    choices = torch.stack([hidden_states[last - skip] for skip in range(skips + 1)])
    chosen = torch.arange(skips + 1)[:, None] == clip_skip[None, :]
    none = torch.zeros((), dtype=choices.dtype)
    return torch.where(chosen[:, :, None, None], choices, none).sum(dim=0)


class ClipTextEncoder(nn.Module):
    """CLIP text encoder: token ids [B, T] to `prompt_embeds` [B, T, D]."""

    def __init__(self, text_encoder: nn.Module, skips: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.skips = skips

    def forward(
        self, input_ids: torch.Tensor, clip_skip: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the normed hidden state of the last layer, or of one before (`clip_skip` [B])."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        # transformers 5 has the layers in the model itself, 4 in its `text_model`.
        model: Any = getattr(self.text_encoder, "text_model", self.text_encoder)
        chosen = skipping(output.hidden_states, clip_skip, -1, self.skips)
        normed: torch.Tensor = model.final_layer_norm(chosen)
        return normed


class DualClipTextEncoder(nn.Module):
    """SDXL's two CLIP text encoders: token ids [B, T] of each to `prompt_embeds`, `text_embeds`."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, skips: int) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2
        self.skips = skips

    def forward(
        self,
        input_ids: torch.Tensor,
        input_ids_2: torch.Tensor,
        clip_skip: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both penultimate hidden states [B, T, D + D2], and the second's projection.

        Or hidden states of layers before (`clip_skip` [B]). As in diffusers, the first's last
        layer and its final norm are unused, and the projection is that of all layers.
        """
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        chosen = [
            skipping(output.hidden_states, clip_skip, -2, self.skips) for output in (first, second)
        ]
        return torch.cat(chosen, dim=-1), second.text_embeds


class T5TextEncoder(nn.Module):
    """T5 encoder: token ids and mask [B, T] to `prompt_embeds` [B, T, D] and the mask."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the last hidden state, and the mask as the denoiser reads it (0 or 1)."""
        hidden = self.text_encoder(input_ids, attention_mask=attention_mask)[0]
        return hidden, attention_mask.to(hidden.dtype)


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


class VaeEncoder(nn.Module):
    """Images [B, H, W, 3] f32 in [0, 1] to latents [B, C, h, w] f32: the posterior's mode."""

    def __init__(self, vae: nn.Module, *, scaled: bool = True, by_channel: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.scale, self.mean = _latent_space(vae, by_channel=by_channel) if scaled else ([1.0], [])
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [0, 1] to [-1, 1], encode, and scale the latents if told so, as diffusers does."""
        pixels = (2 * images - 1).permute(0, 3, 1, 2).to(self.compute_dtype)
        posterior = self.vae.encode(pixels, return_dict=False)[0]  # type: ignore[operator]
        mode: torch.Tensor = posterior.mode().float()
        return (mode - _channels(self.mean)) * _channels(self.scale)


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] f32 to images [B, H, W, 3] f32 in [0, 1]."""

    def __init__(self, vae: nn.Module, *, by_channel: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.scale, self.mean = _latent_space(vae, by_channel=by_channel)
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo the latents' scaling, decode, and map [-1, 1] to [0, 1], as diffusers does."""
        scaled = latents / _channels(self.scale) + _channels(self.mean)
        image = self.vae.decode(scaled.to(self.compute_dtype), return_dict=False)[0]  # type: ignore[operator]
        return (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


class VideoVaeDecoder(nn.Module):
    """Latents [B, F * C, h, w] f32 to images [B, F, H, W, 3] f32 in [0, 1]."""

    def __init__(self, vae: nn.Module, frames: int) -> None:
        super().__init__()
        self.vae = vae
        self.frames = frames
        self.scaling_factor = _latent_space(vae, by_channel=False)[0][0]
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode all frames of a video at once, as diffusers does unless it is told otherwise."""
        frames = latents.unflatten(1, (self.frames, -1)).flatten(0, 1) / self.scaling_factor
        images = self.vae.decode(  # type: ignore[operator]
            frames.to(self.compute_dtype), num_frames=self.frames, return_dict=False
        )[0]
        images = (images.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return images.unflatten(0, (-1, self.frames)).contiguous()


def _latent_space(vae: Any, *, by_channel: bool) -> tuple[list[float], list[float]]:
    """Return what latents were multiplied with, and what was subtracted from them before.

    One value for all channels, or, where a pipeline reads the mean and the deviation of its VAE's
    latents, one for each; no mean is zero. A `shift_factor` is not read by any of these pipelines.
    """
    factor = float(vae.config.scaling_factor)
    mean, deviation = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if not by_channel or mean is None or deviation is None:  # diffusers wants both
        return [factor], []
    return [factor / float(value) for value in deviation], [float(value) for value in mean]


def _channels(values: list[float]) -> torch.Tensor | float:
    """Return what is computed with latents [B, C, h, w]."""
    if len(values) < 2:
        return values[0] if values else 0.0
    return torch.tensor(values)[:, None, None]
