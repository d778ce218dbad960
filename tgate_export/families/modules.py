"""What a pipeline has besides its denoiser, as modules to export: text encoders, VAE decoder."""

from __future__ import annotations

import torch
from torch import nn


class ClipTextEncoder(nn.Module):
    """CLIP text encoder: token ids [B, T] to `prompt_embeds` [B, T, D]."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state, as diffusers without `clip_skip`."""
        hidden: torch.Tensor = self.text_encoder(input_ids)[0]
        return hidden


class DualClipTextEncoder(nn.Module):
    """SDXL's two CLIP text encoders: token ids [B, T] of each to `prompt_embeds`, `text_embeds`."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2

    def forward(
        self, input_ids: torch.Tensor, input_ids_2: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both penultimate hidden states [B, T, D + D2], and the second's projection.

        As diffusers without `clip_skip`: the last layers, and the first's final norm, are unused.
        """
        first = self.text_encoder(input_ids, output_hidden_states=True)
        second = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return embeds, second.text_embeds


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


class VaeDecoder(nn.Module):
    """Latents [B, C, h, w] f32 to images [B, H, W, 3] f32 in [0, 1]."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        self.scaling_factor = float(vae.config.scaling_factor)  # type: ignore[union-attr, arg-type]
        shift = getattr(vae.config, "shift_factor", None)
        self.shift_factor = float(shift) if shift else 0.0
        self.compute_dtype = next(vae.parameters()).dtype

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Undo the latents' scaling, decode, and map [-1, 1] to [0, 1], as diffusers does."""
        scaled = latents / self.scaling_factor + self.shift_factor
        image = self.vae.decode(scaled.to(self.compute_dtype), return_dict=False)[0]  # type: ignore[operator]
        return (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()
