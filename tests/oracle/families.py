"""Final latents of any family: from the official `tgate` 1.0.0 package, and from diffusers."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import tgate
import torch
from PIL import Image

from tests.oracle import plain_gates
from tests.oracle.memo import memoized
from tests.oracle.official_tgate import SCHEDULERS

LOADERS = {
    "StableDiffusionPipeline": tgate.TgateSDLoader,
    "StableDiffusionXLPipeline": tgate.TgateSDXLLoader,
    "PixArtAlphaPipeline": tgate.TgatePixArtAlphaLoader,
    "PixArtSigmaPipeline": tgate.TgatePixArtSigmaLoader,
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


def _options(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Add the size; PixArt would replace it by one of a list."""
    side = call["latents"].shape[-1] * pipe.vae_scale_factor
    options = {"height": side, "width": side} | call
    if type(pipe).__name__.startswith("PixArt"):
        options |= {"use_resolution_binning": False}
    return options


@memoized
def official_latents(
    directory: Path, *, latents: np.ndarray, scheduler: str, gate_step: int, **call: Any
) -> np.ndarray:
    """Run with a gate, by default of cross-attention alone (version 1 of the paper).

    Returns latents [B, C, h, w].
    """
    pipe = _with_scheduler(load_pipeline(directory, "tgate"), scheduler)
    denoiser = getattr(pipe, "unet", None) or pipe.transformer
    for module in denoiser.modules():  # the package keeps each layer's cache between calls
        if hasattr(module, "cache"):
            module.cache = None
    run = LOADERS[type(pipe).__name__](pipe).tgate
    version_1 = {"sp_interval": 1, "fi_interval": 1, "warm_up": 0}
    call = version_1 | call | {"latents": torch.from_numpy(latents), "output_type": "latent"}
    result = run(gate_step=gate_step, **_options(pipe, call))
    images: np.ndarray = result.images.numpy()
    return images


@memoized
def diffusers_run(
    directory: Path, *, latents: np.ndarray, scheduler: str, output_type: str, **call: Any
) -> np.ndarray:
    """Run diffusers itself, without a gate: latents [B, C, h, w] or images [B, H, W, 3]."""
    pipe = _with_scheduler(load_pipeline(directory, "diffusers"), scheduler)
    call |= {"latents": torch.from_numpy(latents), "output_type": output_type}
    result = pipe(**_options(pipe, call)).images
    return result.numpy() if isinstance(result, torch.Tensor) else np.asarray(result)


def diffusers_embeds(
    directory: Path, prompts: tuple[str, ...], negative_prompt: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Encode prompts, and a negative prompt for each, with diffusers: arrays [B, ...] by name."""
    pipe = load_pipeline(directory, "diffusers")
    names = ["prompt_embeds"]
    if hasattr(pipe, "text_encoder_2"):
        names.append("text_embeds")
    if hasattr(pipe, "transformer"):
        names.append("prompt_attention_mask")
    with torch.no_grad():
        encoded = pipe.encode_prompt(
            prompt=list(prompts),
            negative_prompt=[negative_prompt] * len(prompts),
            do_classifier_free_guidance=True,
            num_images_per_prompt=1,
            device=torch.device("cpu"),
        )
    arrays = [tensor.float().numpy() for tensor in encoded]
    if names[-1] == "text_embeds":  # embeddings of both kinds first, then pooled ones
        return dict(zip(names, arrays[0::2], strict=True)), dict(
            zip(names, arrays[1::2], strict=True)
        )
    half = len(names)
    return dict(zip(names, arrays[:half], strict=True)), dict(
        zip(names, arrays[half:], strict=True)
    )


def as_diffusers(
    embeds: dict[str, np.ndarray], negatives: dict[str, np.ndarray], index: int
) -> dict[str, Any]:
    """Return one prompt's embeddings, and no prompts, as arguments of diffusers' pipelines."""
    pooled = {"text_embeds": "pooled_prompt_embeds"}
    tensors = {
        prefix + pooled.get(name, name): torch.from_numpy(value[[index]])
        for prefix, values in (("", embeds), ("negative_", negatives))
        for name, value in values.items()
    }
    return {"prompt": None, "negative_prompt": None, **tensors}


@torch.no_grad()
def image_latents(directory: Path, images: np.ndarray) -> np.ndarray:
    """Encode images [B, H, W, 3] in [0, 1] with diffusers: the mode, scaled [B, C, h, w]."""
    pipe = load_pipeline(directory, "diffusers")
    pixels = pipe.image_processor.preprocess(images)
    latents = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    result: np.ndarray = latents.numpy()
    return result


@memoized
def diffusers_image_run(
    directory: Path, *, image: np.ndarray, noise: np.ndarray, scheduler: str, **call: Any
) -> np.ndarray:
    """Run diffusers' image-to-image pipeline, without a gate: latents [B, C, h, w].

    It takes latents in place of an image as they are, and draws the noise itself.

    Args:
        directory: the pipeline's.
        image: pictures [B, H, W, 3] in [0, 1], or latents [B, C, h, w].
        noise: [B, C, h, w].
        scheduler: its name.
        **call: further arguments.
    """
    if image.shape[-1] == 3:
        image = image_latents(directory, image)
    pipe = load_pipeline(directory, "diffusers")
    name = type(pipe).__name__
    if "Img2Img" not in name:  # which an SDXL refiner is
        name = name.replace("Pipeline", "Img2ImgPipeline")
    settings = {
        key: pipe.config[key]
        for key in ("requires_aesthetics_score", "force_zeros_for_empty_prompt")
        if key in pipe.config
    }
    begin = _with_scheduler(getattr(diffusers, name)(**pipe.components, **settings), scheduler)
    begin.set_progress_bar_config(disable=True)
    module = importlib.import_module(begin.__module__)
    with mock.patch.object(module, "randn_tensor", return_value=torch.from_numpy(noise)):
        result = begin(image=torch.from_numpy(image), output_type="latent", **call)
    latents: np.ndarray = result.images.numpy()
    return latents


def ensemble_run(
    base: Path,
    refiner: Path,
    *,
    latents: np.ndarray,
    start: float,
    **call: Any,
) -> np.ndarray:
    """Run diffusers' ensemble of expert denoisers: latents [B, C, h, w].

    Args:
        base: the pipeline that begins.
        refiner: the one that goes on.
        latents: to begin with, of unit variance.
        start: part of the run after which it does.
        **call: further arguments of both.
    """
    begun = diffusers_run(base, latents=latents, output_type="latent", denoising_end=start, **call)
    return diffusers_image_run(
        refiner, image=begun, noise=np.zeros_like(latents), denoising_start=start, **call
    )


def hires_run(
    directory: Path,
    *,
    latents: np.ndarray,
    noise: np.ndarray,
    upscaler: str,
    second: dict[str, Any],
    **call: Any,
) -> np.ndarray:
    """Run both passes of a hires fix with diffusers: latents [B, C, h, w].

    Args:
        directory: the pipeline's.
        latents: of the first pass, of unit variance.
        noise: of the second pass [B, C, h, w].
        upscaler: mode of torch's `interpolate`, or "lanczos" in pixels.
        second: arguments that are the second pass's own.
        **call: further ones of both.
    """
    pixels = upscaler == "lanczos"
    kind = "np" if pixels else "latent"
    made = diffusers_run(directory, latents=latents, output_type=kind, **call)
    height, width = noise.shape[2:]
    if pixels:
        factor = made.shape[1] // latents.shape[2]
        size = width * factor, height * factor
        planes = made.transpose(0, 3, 1, 2).reshape(-1, *made.shape[1:3])
        large = [Image.fromarray(plane).resize(size, Image.Resampling.LANCZOS) for plane in planes]
        stacked = np.stack([np.asarray(plane) for plane in large])
        made = stacked.reshape(len(made), 3, *stacked.shape[1:]).transpose(0, 2, 3, 1).clip(0, 1)
    else:
        options = {} if upscaler == "nearest" else {"align_corners": False}
        tensor = torch.from_numpy(made)
        made = torch.nn.functional.interpolate(
            tensor, size=(height, width), mode=upscaler, **options
        ).numpy()
    begun: np.ndarray = diffusers_image_run(directory, image=made, noise=noise, **call | second)
    return begun


def official_video(directory: Path, *, image: np.ndarray, noise: np.ndarray, **call: Any) -> Any:
    """Run the official package: latents [B, F, C, h, w] from images [H, W, 3] in 8 bits."""
    pipe = load_pipeline(directory, "tgate")
    for module in pipe.unet.modules():
        if hasattr(module, "cache"):
            module.cache = None
    return _video(tgate.TgateSVDLoader(pipe).tgate, "tgate.SVD", image, noise, call)


def diffusers_video(directory: Path, *, image: np.ndarray, noise: np.ndarray, **call: Any) -> Any:
    """Run diffusers itself, without a gate: latents [B, F, C, h, w], or frames."""
    pipe = load_pipeline(directory, "diffusers")
    return _video(pipe, type(pipe).__module__, image, noise, call)


def gated_run(
    run: Callable[..., Any], directory: Path, gates: dict[str, Any], **call: Any
) -> np.ndarray:
    """Run one of the functions above that run diffusers itself, with a gate.

    Args:
        run: the function.
        directory: the pipeline's.
        gates: settings of `plain_gates.Gates`.
        **call: further arguments of the function.
    """
    run = getattr(run, "__wrapped__", run)  # what is remembered has no gate
    with plain_gates.gated(load_pipeline(directory, "diffusers"), **gates):
        return np.asarray(run(directory, **call))


def _video(
    run: Any, module: str, image: np.ndarray, noise: np.ndarray, call: dict[str, Any]
) -> Any:
    """Call a pipeline whose only noise besides the latents is that on the image [1, 3, H, W]."""
    call |= {"latents": torch.from_numpy(call["latents"]), "image": Image.fromarray(image)}
    height, width = image.shape[:2]
    source = importlib.import_module(module)
    with mock.patch.object(source, "randn_tensor", return_value=torch.from_numpy(noise)):
        frames = run(height=height, width=width, **call).frames
    return frames.numpy() if isinstance(frames, torch.Tensor) else frames
