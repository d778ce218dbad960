"""CLIP's text encoder as a module to export."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tgate_export.families.modules import skipping


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
