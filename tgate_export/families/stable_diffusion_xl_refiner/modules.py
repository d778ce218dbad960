"""The refiner's text encoder as a module to export."""

from __future__ import annotations

import torch
from torch import nn

from tgate_export.families.modules import skipping


class SecondClipTextEncoder(nn.Module):
    """SDXL's second CLIP text encoder alone: token ids [B, T] to `prompt_embeds`, `text_embeds`."""

    def __init__(self, text_encoder_2: nn.Module, skips: int) -> None:
        super().__init__()
        self.text_encoder_2 = text_encoder_2
        self.skips = skips

    def forward(
        self, input_ids_2: torch.Tensor, clip_skip: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return its penultimate hidden state [B, T, D], and its projection.

        Or a hidden state of a layer before (`clip_skip` [B]); see SDXL's own module.
        """
        found = self.text_encoder_2(input_ids_2, output_hidden_states=True)
        chosen = skipping(found.hidden_states, clip_skip, -2, self.skips)
        return chosen, found.text_embeds
