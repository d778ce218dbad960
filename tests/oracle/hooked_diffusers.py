"""Gated runs by diffusers' own pipelines, with hooks on attention: no code of ours, nor `tgate`'s.

The official package cannot run Stable Diffusion without classifier-free guidance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch


def load(directory: Path, scheduler: str = "DDIMScheduler") -> Any:
    """Load a pipeline with another scheduler."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def gated_latents(
    pipe: Any, *, gate_step: int, latents: np.ndarray, evaluations: int = 1, **call: Any
) -> np.ndarray:
    """Return final latents; from `gate_step` on, `attn2` gives what it gave in the step before.

    Args:
        pipe: a pipeline that runs one pass a step.
        gate_step: the first gated step.
        latents: [B, C, h, w] of unit variance.
        evaluations: of the UNet in a step, all of which are gated or none.
        **call: further arguments of the pipeline's call.
    """
    step, kept = 0, {}

    def hook(module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if step < gate_step:
            kept[module] = output
        return kept[module]

    def count(_pipe: Any, index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal step
        step = (index + 1) // evaluations
        return tensors

    handles = [
        module.register_forward_hook(hook)
        for path, module in pipe.unet.named_modules()
        if path.endswith("attn2")
    ]
    try:
        result = pipe(
            latents=torch.from_numpy(latents),
            output_type="latent",
            callback_on_step_end=count,
            **call,
        )
    finally:
        for handle in handles:
            handle.remove()
    images: np.ndarray = result.images.numpy()
    return images
