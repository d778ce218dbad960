"""Latents and pictures in a larger size."""

from __future__ import annotations

import numpy as np

_BICUBIC = -0.75  # of the cubic convolution kernel, as in torch


def enlarged_latents(latents: np.ndarray, height: int, width: int, upscaler: str) -> np.ndarray:
    """Return latents [B, C, h, w] f32 in another size, as `interpolate` of torch does it.

    Args:
        latents: of the first pass.
        height: of the result, in latents.
        width: as the height.
        upscaler: "latent" is bilinear.
    """
    down, across = (
        _weights(had, wanted, upscaler)
        for had, wanted in zip(latents.shape[2:], (height, width), strict=True)
    )
    return np.asarray(down @ latents.astype(np.float64) @ across.T, np.float32)


def enlarged_pictures(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return pictures [B, H, W, 3] f32 in [0, 1] in another size, by Pillow's Lanczos filter.

    Each channel is scaled in floats: nothing is rounded to 8 bits on the way.
    """
    from PIL import Image

    lanczos = Image.Resampling.LANCZOS
    made = np.empty((len(pictures), height, width, 3), np.float32)
    for picture, target in zip(pictures, made, strict=True):
        for channel in range(3):
            plane = Image.fromarray(np.ascontiguousarray(picture[:, :, channel], np.float32))
            target[:, :, channel] = np.asarray(plane.resize((width, height), lanczos))
    return made.clip(0, 1)


def _weights(had: int, wanted: int, upscaler: str) -> np.ndarray:
    """Return the matrix [wanted, had] f64 that scales one side."""
    places = np.arange(wanted)
    rows = np.zeros((wanted, had))
    scale = had / wanted
    if upscaler == "latent-nearest":
        at = places.astype(np.float32) * np.float32(scale)  # as torch rounds
        rows[places, np.minimum(at.astype(int), had - 1)] = 1
        return rows
    at = (places + 0.5) * scale - 0.5
    if upscaler == "latent":
        at = at.clip(0, None)
    first = np.floor(at).astype(int)
    for offset in (0, 1) if upscaler == "latent" else (-1, 0, 1, 2):
        distance = np.abs(at - first - offset)
        weight = 1 - distance if upscaler == "latent" else _cubic(distance)
        np.add.at(rows, (places, (first + offset).clip(0, had - 1)), weight)
    return rows


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Return the weight of a neighbour at a distance of 0 to 2 (Keys 1981)."""
    a, x = _BICUBIC, distance
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, far)
