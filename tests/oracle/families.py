"""Final latents of any family: from the official `tgate` 1.0.0 package, and from diffusers."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import tgate
import torch

from tests.oracle.official_tgate import SCHEDULERS

LOADERS = {
    "StableDiffusionPipeline": tgate.TgateSDLoader,
    "StableDiffusionXLPipeline": tgate.TgateSDXLLoader,
}


@cache
def load_pipeline(directory: Path, purpose: str) -> Any:
    """Load a pipeline once for each purpose: `tgate` patches its modules in place."""
    del purpose
    diffusers.utils.logging.disable_progress_bar()
    name = json.loads((directory / "model_index.json").read_text())["_class_name"]
    pipe = getattr(diffusers, name).from_pretrained(os.fspath(directory), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _with_scheduler(pipe: Any, scheduler: str) -> Any:
    scheduler_class, overrides = SCHEDULERS[scheduler]
    pipe.scheduler = getattr(diffusers, scheduler_class).from_config(
        pipe.scheduler.config, **overrides
    )
    return pipe


def official_latents(
    directory: Path, *, latents: np.ndarray, scheduler: str, gate_step: int, **call: Any
) -> np.ndarray:
    """Run pure cross-attention gating (version 1 of the paper): latents [B, C, h, w]."""
    pipe = _with_scheduler(load_pipeline(directory, "tgate"), scheduler)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    for module in denoiser.modules():  # the package keeps each layer's cache between calls
        if hasattr(module, "cache"):
            module.cache = None
    result = LOADERS[type(pipe).__name__](pipe).tgate(
        latents=torch.from_numpy(latents), gate_step=gate_step, sp_interval=1, fi_interval=1,
        warm_up=0, output_type="latent", **call,
    )  # fmt: skip
    images: np.ndarray = result.images.numpy()
    return images


def diffusers_run(
    directory: Path, *, latents: np.ndarray, scheduler: str, output_type: str, **call: Any
) -> np.ndarray:
    """Run diffusers itself, without a gate: latents [B, C, h, w] or images [B, H, W, 3]."""
    pipe = _with_scheduler(load_pipeline(directory, "diffusers"), scheduler)
    result = pipe(latents=torch.from_numpy(latents), output_type=output_type, **call).images
    return result.numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
