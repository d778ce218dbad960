"""What pipelines of several families have besides their denoiser, as modules to export."""

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


class VaeEncoder(nn.Module):
    """Images [B, H, W, 3] f32 in [0, 1] to latents [B, C, h, w] f32: the posterior's mode.

    `AutoencoderTiny` has no posterior, and gives latents.
    """

    def __init__(self, vae: nn.Module, *, scaled: bool = True, by_channel: bool = False) -> None:
        super().__init__()
        self.vae = vae
        self.scale, self.mean = latent_space(vae, by_channel=by_channel) if scaled else ([1.0], [])
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map [0, 1] to [-1, 1], encode, and scale the latents if told so, as diffusers does."""
        pixels = (2 * images - 1).permute(0, 3, 1, 2).to(self.compute_dtype)
        found = self.vae.encode(pixels, return_dict=False)[0]  # type: ignore[operator]
        mode: torch.Tensor = found if isinstance(found, torch.Tensor) else found.mode()
        return (mode.float() - _channels(self.mean)) * _channels(self.scale)


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] f32 to images [B, H, W, 3] f32.

    They are in [0, 1] where values are `limited`, and else nearly.
    """

    def __init__(self, vae: nn.Module, *, by_channel: bool = False, limited: bool = True) -> None:
        super().__init__()
        self.vae = vae
        self.limited = limited
        self.scale, self.mean = latent_space(vae, by_channel=by_channel)
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo the latents' scaling, decode, and map [-1, 1] to [0, 1], as diffusers does."""
        scaled = latents / _channels(self.scale) + _channels(self.mean)
        image = self.vae.decode(scaled.to(self.compute_dtype), return_dict=False)[0]  # type: ignore[operator]
        pixels = image.float() / 2 + 0.5
        if self.limited:
            pixels = pixels.clamp(0, 1)
        return pixels.permute(0, 2, 3, 1).contiguous()


def latent_space(vae: Any, *, by_channel: bool) -> tuple[list[float], list[float]]:
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
