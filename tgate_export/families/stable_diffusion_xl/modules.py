"""SDXL's text encoders as a module to export."""

from __future__ import annotations

import torch
from torch import nn

from tgate_export.families.modules import skipping


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
