"""Gates with any `cache_blend` and `guidance_carry`: diffusers and hooks, no code of ours.

A pipeline of diffusers runs as it is, guidance, sampler and all; only its denoiser is another one.
Before the gate it is the pipeline's, and hooks note what its attention gives. From the gate on it
runs on one half of the batch, with what was noted in place of attention's outputs, and gives its
prediction for both halves, so that the pipeline's guidance leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tgate.tgate_utils import tgate_scheduler


class Gates:
    """A denoiser that is gated; put in place by `gated`.

    Args:
        pipe: a pipeline of diffusers.
        gate_step: steps from this one on are gated.
        scale: of guidance; of a video [1, F, 1, 1, 1].
        blend: weight of the conditional half in what is reused; the other has the rest.
        carry: how much of the guidance of the last step before the gate is added.
        extra: calls of the denoiser before step 0 (PNDM: 1).
        half: which half of the batch a gated step runs on: 0 is the unconditional one.
        intervals: `sp_interval`, `fi_interval` and `warm_up`, as of the official package.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        gate_step: int,
        scale: Any,
        blend: float,
        carry: float,
        extra: int = 0,
        half: int = 0,
        **intervals: int,
    ) -> None:
        self.scale, self.blend, self.carry, self.half = scale, blend, carry, half
        self.denoiser = getattr(pipe, "unet", None) or pipe.transformer
        self.call = self.denoiser.forward
        self.gating = {"gate_step": gate_step, "sp_interval": 1, "fi_interval": 1, "warm_up": 0}
        self.gating |= intervals
        self.step = -extra
        self.kept: dict[Any, torch.Tensor] = {}
        self.now: dict[str, dict[str, bool]] = {}
        self.one_half = False
        self.delta = torch.zeros(())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the denoiser's own."""
        none = {"cache": False, "reuse": False}
        cross, own, apart = none, none, True
        if self.step >= 0:
            cross, own, apart = tgate_scheduler(cur_step=self.step, **self.gating)
        gated = self.step >= self.gating["gate_step"]
        self.now = {"attn2": cross, "attn1": own}
        self.one_half, self.apart = gated, apart
        self.step += 1
        if not gated:
            prediction = self.call(*args, **kwargs)[0]
            unconditional, conditional = prediction.chunk(2)
            self.delta = conditional - unconditional
            return (prediction,)
        halved_args, halved = self._halved(args), self._halved(kwargs)
        prediction = self.call(*halved_args, **halved)[0]
        prediction = prediction + self.carry * (self.scale - self.blend) * self.delta
        return (torch.cat([prediction, prediction]),)

    def _halved(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.chunk(2)[self.half] if value.ndim else value
        if isinstance(value, dict):
            return {name: self._halved(entry) for name, entry in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._halved(entry) for entry in value)
        return value

    def hook(self, kind: str) -> Any:
        """Return a hook for attention layers: what they give, or what stands for it."""

        def note(module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
            if self.now[kind]["reuse"]:
                return self.kept[module]
            if self.now[kind]["cache"]:
                self.kept[module] = output
                if not self.one_half and not self.apart:
                    unconditional, conditional = output.chunk(2)
                    self.kept[module] = unconditional * (1 - self.blend) + conditional * self.blend
            return output

        return note


@contextmanager
def gated(pipe: Any, **settings: Any) -> Iterator[None]:
    """Gate a pipeline's denoiser while it makes one image; see `Gates`."""
    gates = Gates(pipe, **settings)
    handles = [
        module.register_forward_hook(gates.hook(path.rpartition(".")[2]))
        for path, module in gates.denoiser.named_modules()
        if path.endswith((".attn1", ".attn2"))
    ]
    gates.denoiser.forward = gates.forward
    try:
        yield
    finally:
        del gates.denoiser.forward
        for handle in handles:
            handle.remove()
