"""PSNR and SSIM against their formulas."""

from __future__ import annotations

import numpy as np
import pytest

from tgate_export.bench.similarity import as_bytes, psnr, similarity, ssim


def flat(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, dtype=np.uint8)


def test_psnr_is_its_formula() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, size=(2, 16, 20, 3), dtype=np.uint8)
    error = np.mean((one.astype(float) - two) ** 2)
    assert psnr(one, two) == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(one, one) == 100.0


def test_ssim_of_flat_pictures_is_its_luminance_term() -> None:
    one, two, c1 = 100.0, 150.0, (0.01 * 255) ** 2
    expected = (2 * one * two + c1) / (one**2 + two**2 + c1)
    assert ssim(flat(100), flat(150)) == pytest.approx(expected, abs=1e-6)
    assert ssim(flat(7), flat(7)) == pytest.approx(1.0)


def test_means() -> None:
    found = similarity([flat(0), flat(0)], [flat(0), flat(255)])
    assert (found.images, found.psnr_db) == (2, 50.0)
    assert found.ssim == pytest.approx((1 + ssim(flat(0), flat(255))) / 2)
    with pytest.raises(ValueError, match="no pictures"):
        similarity([], [])


def test_bytes_round_as_pillow_saves() -> None:
    assert as_bytes(np.array([0.0, 0.4999 / 255, 0.5001 / 255, 1.0])).tolist() == [0, 0, 1, 255]
