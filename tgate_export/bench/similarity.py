"""How much a picture differs from another: PSNR and SSIM, by scikit-image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tgate_export.bench.result import Similarity

IDENTICAL_DB = 100.0
"""PSNR given to equal pictures, and the most that is given; infinity has no JSON."""


def psnr(reference: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of pictures [H, W, 3] of 8 bits, at most 100."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(reference, image):
        return IDENTICAL_DB
    return min(IDENTICAL_DB, float(peak_signal_noise_ratio(reference, image, data_range=255)))


def ssim(reference: np.ndarray, image: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004: Gaussian window, sigma 1.5), mean over colours."""
    from skimage.metrics import structural_similarity

    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    found = structural_similarity(reference, image, data_range=255, channel_axis=-1, **window)
    return float(found)


def similarity(references: Sequence[np.ndarray], images: Iterable[np.ndarray]) -> Similarity:
    """Compare 8-bit pictures [H, W, 3] with their references, in order, and give the means.

    Raises:
        ValueError: no pictures, or not as many.
    """
    pairs = list(zip(references, images, strict=True))
    if not pairs:
        raise ValueError("there are no pictures to compare")
    ssims = [ssim(*pair) for pair in pairs]
    return Similarity(
        psnr_db=float(np.mean([psnr(*pair) for pair in pairs])),
        ssim=float(np.mean(ssims)),
        images=len(pairs),
        ssims=ssims,
    )


def as_bytes(images: np.ndarray) -> np.ndarray:
    """Pictures in [0, 1] as 8 bits, rounded as when they are saved."""
    return np.asarray((images * 255).round(), dtype=np.uint8)
