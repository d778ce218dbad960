"""Run the official `tgate` 1.0.0 package, which shares no code with ours."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from tests.oracle.memo import memoized

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "dpm++2m": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2},
    ),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}


@cache
def load_pipeline(directory: Path) -> Any:
    """Load a pipeline once; each call below works on modules that `tgate` patches in place."""
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(
        os.fspath(directory), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False, dtype=torch.float32,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@memoized
def official_latents(
    directory: Path,
    *,
    prompt: str,
    negative_prompt: str,
    latents: np.ndarray,
    steps: int,
    gate_step: int,
    guidance_scale: float,
    scheduler: str,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
) -> np.ndarray:
    """Return final latents [B, C, h, w]; by default only cross-attention is gated (version 1)."""
    from tgate import TgateSDLoader

    pipe = load_pipeline(directory)
    scheduler_class, overrides = SCHEDULERS[scheduler]
    pipe.scheduler = getattr(diffusers, scheduler_class).from_config(
        pipe.scheduler.config, **overrides
    )
    # The package keeps each layer's cache between calls.
    for module in pipe.unet.modules():
        if hasattr(module, "cache"):
            module.cache = None
    result = TgateSDLoader(pipe).tgate(
        prompt=prompt,
        negative_prompt=negative_prompt,
        latents=torch.from_numpy(latents),
        num_inference_steps=steps,
        gate_step=gate_step,
        sp_interval=sp_interval,
        fi_interval=fi_interval,
        warm_up=warm_up,
        guidance_scale=guidance_scale,
        output_type="latent",
    )
    images: np.ndarray = result.images.numpy()
    return images
