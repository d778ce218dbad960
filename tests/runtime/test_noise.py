"""The latents' generator against Philox4x64-10 and Box-Muller written out in plain Python."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tgate_export.runtime.noise import standard_normal

MASK = 2**64 - 1


def philox4x64(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k[0], second & MASK, (first >> 64) ^ c[3] ^ k[1], first & MASK]
        k = [(k[0] + 0x9E3779B97F4A7C15) & MASK, (k[1] + 0xBB67AE8584CAA73B) & MASK]
    return c


def test_known_answer() -> None:
    """The published test vector of Random123 for an all-zero counter and key."""
    assert philox4x64([0] * 4, [0] * 2) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B,
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, MASK), image=st.integers(0, 1000), draw=st.integers(0, 101),
       count=st.integers(1, 23))  # fmt: skip
def test_equals_plain_python(seed: int, image: int, draw: int, count: int) -> None:
    words: list[int] = []
    while len(words) < count + 1:
        words += philox4x64([len(words) // 4 + 1, draw, 0, 0], [(seed + image) & MASK, 0])
    expected = []
    for u, v in zip(words[0::2], words[1::2], strict=True):
        radius = math.sqrt(-2 * math.log(((u >> 11) + 1) * 2.0**-53))
        angle = 2 * math.pi * ((v >> 11) + 1) * 2.0**-53
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    found = standard_normal((count, 1, 1), seed, image, draw).reshape(-1)
    # f64 functions of different libraries may differ in the last bit before rounding to f32.
    np.testing.assert_allclose(found, np.float32(expected[:count]), rtol=2e-7, atol=1e-15)


def test_an_image_can_be_made_again_alone() -> None:
    several = standard_normal((4, 8, 8), 2**64 - 1, 3, 5)
    np.testing.assert_array_equal(several, standard_normal((4, 8, 8), 2, 0, 5))


def test_is_normal_and_images_differ() -> None:
    first, second = (standard_normal((4, 64, 64), 7, image).reshape(-1) for image in (0, 1))
    # 16,384 draws from a fixed seed: a p-value below 1e-3 would mean a wrong distribution.
    assert stats.kstest(first, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.04  # five standard errors
