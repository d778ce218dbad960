"""Starting latents from a seed, by a generator that is easy to write again in any language."""

from __future__ import annotations

import math

import numpy as np

# `draw` of the noise on a video's image; steps draw with 1 and up.
IMAGE_NOISE = 2**32
# What is added to each `draw` of a second pass, and of a run that goes on from another one.
SECOND_PASS = 2**33


def standard_normal(shape: tuple[int, ...], seed: int, image: int = 0, draw: int = 0) -> np.ndarray:
    """Draw unit-variance latents for one image, or the noise of one of its steps.

    Philox4x64-10 (Salmon et al. 2011) with key (seed + image, 0) and counters (k, draw, 0, 0),
    where k = 1, 2, 3, ... is the lowest word, gives 64-bit words; the upper 53 bits of each, plus
    one, over 2^53 are uniform in (0, 1]; consecutive pairs (u, v) become normals by Box-Muller:
    sqrt(-2 ln u) cos(2 pi v), then sqrt(-2 ln u) sin(2 pi v), computed in f64, rounded to f32.

    Args:
        shape: [C, h, w].
        seed: 0 .. 2^64 - 1.
        image: index of the image in its call: image i is that of a call of its own with seed + i,
            modulo 2^64.
        draw: 0 for the starting latents, i + 1 for the noise of evaluation i, `IMAGE_NOISE`;
            of a second pass `SECOND_PASS` more.
    """
    count = math.prod(shape)
    # numpy increments the counter before it is first used.
    counter = np.array([0, draw, 0, 0], dtype=np.uint64)
    key = np.array([(seed + image) % 2**64, 0], dtype=np.uint64)
    philox = np.random.Philox(key=key, counter=counter)
    words = philox.random_raw(count + count % 2)
    uniform = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = 2.0 * np.pi * uniform[1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1)[:count].astype(np.float32).reshape(shape)
