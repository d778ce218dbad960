"""The cache of guidance: the conditional prediction less the unconditional one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tgate_export.methods.cross_attention import CachedOutputs


@dataclass(frozen=True)
class GuidanceDelta:
    """A cache tensor of the latents' shape [B, C, h, w] f32, as the denoiser predicts.

    Attributes:
        kind: of the method's kinds of caches, and the tensor's name in the graphs.
        layers: none.
    """

    kind: str
    layers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The tensor's name in the graphs."""
        return self.kind

    def stack(self, box: CachedOutputs, *_: object) -> torch.Tensor:
        """Take it out of `box`."""
        return box.guidance_delta

    def unstack(self, cache: torch.Tensor, box: CachedOutputs) -> None:
        """Put it into `box`."""
        box.guidance_delta = cache
