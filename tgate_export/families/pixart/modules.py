"""T5's encoder as a module to export."""

from __future__ import annotations

import torch
from torch import nn


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
