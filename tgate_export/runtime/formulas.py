"""Inputs of graphs that the host computes from a call's parameters and size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tgate_export.bundle.origins import Formula
from tgate_export.runtime.guidance import frame_scales


def formula_row(
    formula: Formula,
    values: Mapping[str, Any],
    *,
    height: int,
    width: int,
    frames: int | None = None,
) -> np.ndarray:
    """Return one image's row [n] f32.

    SDXL's `time_ids` (arXiv 2307.01952, section 2.2) are the original size, the top left corner
    of the crop and the target size, for its refiner an aesthetic score in place of the last one;
    PixArt-alpha's (arXiv 2310.00426) are the size and its ratio.
    Stable Video Diffusion (arXiv 2311.15127) was trained with one frame a second less.

    Args:
        formula: which one.
        values: parameters by name; None for a size is the image's own.
        height: pixels.
        width: pixels.
        frames: of a video.
    """
    size = (height, width)
    if formula == "time_ids":
        numbers: tuple[float, ...] = (
            *(values["original_size"] or size),
            *(values["crops_coords_top_left"] or (0, 0)),
            *(values["target_size"] or size),
        )
    elif formula in ("aesthetic_ids", "negative_aesthetic_ids"):
        numbers = (
            *(values["original_size"] or size),
            *(values["crops_coords_top_left"] or (0, 0)),
            values[f"{'negative_' * formula.startswith('negative')}aesthetic_score"],
        )
    elif formula == "resolution":
        numbers = size
    elif formula == "aspect_ratio":
        numbers = (height / width,)
    elif formula == "video_ids":
        numbers = (values["fps"] - 1, values["motion_bucket_id"], values["noise_aug_strength"])
    else:
        assert frames is not None  # the manifest was checked
        return frame_scales(values["min_guidance_scale"], values["guidance_scale"], frames)
    return np.array(numbers, dtype=np.float32)
