"""Latents are enlarged as torch does it, and pictures as Pillow does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tgate_export.runtime.enlarge import enlarged_latents, enlarged_pictures

MODES: dict[str, dict[str, Any]] = {
    "latent": {"mode": "bilinear", "align_corners": False},
    "latent-bicubic": {"mode": "bicubic", "align_corners": False},
    "latent-nearest": {"mode": "nearest"},
}


@pytest.mark.parametrize("sides", [(16, 20), (12, 15), (8, 10), (33, 77)])
@pytest.mark.parametrize("upscaler", MODES)
def test_latents_as_torch(upscaler: str, sides: tuple[int, int]) -> None:
    latents = np.random.default_rng(0).standard_normal((2, 4, 8, 10), dtype=np.float32)
    found = enlarged_latents(latents, *sides, upscaler)
    tensor = torch.from_numpy(latents)
    expected = torch.nn.functional.interpolate(tensor, size=sides, **MODES[upscaler])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)  # places in f32 there


@pytest.mark.parametrize("had", [7, 8, 10, 60])
def test_the_nearest_is_torchs(had: int) -> None:
    """Places that are nearly whole numbers are rounded as there."""
    line = np.arange(had, dtype=np.float32).reshape(1, 1, 1, had)
    for wanted in range(had, 5 * had):
        found = enlarged_latents(line, 1, wanted, "latent-nearest")
        expected = torch.nn.functional.interpolate(torch.from_numpy(line), size=(1, wanted))
        np.testing.assert_array_equal(found, expected.numpy())


def test_pictures_as_pillow() -> None:
    """Within a level or so of what Pillow makes of 8 bits, which it rounds to twice."""
    pixels = np.random.default_rng(0).integers(90, 166, (2, 12, 16, 3), dtype=np.uint8)
    found = enlarged_pictures(pixels.astype(np.float32) / 255, 30, 24)
    assert found.shape == (2, 30, 24, 3)
    for index, picture in enumerate(pixels):
        large = Image.fromarray(picture).resize((24, 30), Image.Resampling.LANCZOS)
        assert np.abs(found[index] * 255 - np.asarray(large)).max() <= 1.5


def test_black_and_white_stay_in_range() -> None:
    """Lanczos overshoots them."""
    found = enlarged_pictures(np.tile(np.eye(8, dtype=np.float32)[None, :, :, None], 3), 20, 20)
    assert (found.min(), found.max()) == (0, 1)
