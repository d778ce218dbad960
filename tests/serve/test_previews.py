"""Previews: the map is the least-squares one, and shows what it was fitted to."""

from __future__ import annotations

import numpy as np

from tgate_export.serve.previews import LatentPreview


def test_a_linear_decoder_is_found() -> None:
    random = np.random.default_rng(0)
    matrix = random.uniform(-0.05, 0.05, (3, 4))

    def decode(latents: np.ndarray) -> np.ndarray:
        colours = np.einsum("kc,chw->hwk", matrix, latents) + 0.5
        return colours.repeat(8, axis=0).repeat(8, axis=1)

    preview = LatentPreview()
    latents = random.standard_normal((4, 6, 5)).astype(np.float32)
    assert preview.picture(latents, 40, 48) is None  # nothing was learnt
    for _ in range(3):
        preview.learn(latents, decode(latents))
    found = preview.picture(latents, 5, 6)
    assert found is not None
    assert found.size == (5, 6)
    expected = decode(latents)[::8, ::8]
    # The ridge, and 8 bits.
    assert np.abs(np.asarray(found) / 255 - expected).max() < 0.01


def test_nothing_is_not_divided_by() -> None:
    preview = LatentPreview()
    preview.learn(np.zeros((4, 2, 2), np.float32), np.full((16, 16, 3), 0.5))
    found = preview.picture(np.zeros((4, 2, 2), np.float32), 16, 16)
    assert found is not None
    assert np.abs(np.asarray(found).astype(int) - 127).max() <= 1
