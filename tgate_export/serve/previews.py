"""Pictures of unfinished latents: a linear map from latent channels to colours.

Which map depends on the model's autoencoder, so it is fitted to pictures that the model itself has
made, by least squares: three colours from the channels and a constant. It costs next to nothing
beside a decoder's call, and shows shapes and colours.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from tgate_export.runtime.batching import Batcher

_RIDGE = 1e-3  # keeps the map bounded where a picture leaves it free
_STEPS = 4  # of the first picture


class LatentPreview:
    """The map of one model; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._products: np.ndarray | None = None  # [C + 1, C + 1], sums over pixels
        self._targets: np.ndarray | None = None  # [C + 1, 3]
        self._spread = 1.0  # standard deviation of finished latents
        self._map: np.ndarray | None = None

    def learn_from(self, batcher: Batcher) -> None:
        """Fit the map to a picture of a few steps, so that the first caller sees something."""
        manifest = batcher.manifest
        steps = min(_STEPS, manifest.samplers[manifest.defaults.scheduler].max_steps)
        if manifest.pictures or not manifest.takes_prompt:
            return
        last: list[np.ndarray] = []
        request = batcher.request(
            "", num_inference_steps=steps, gate_step=steps, seed=0, output_type="np"
        )
        output = batcher.submit(request, on_step=lambda step: last.append(step.latents())).result()
        self.learn(last[-1], np.asarray(output.images)[0])

    def learn(self, latents: np.ndarray, image: np.ndarray) -> None:
        """Add a finished picture to what the map is fitted to.

        Args:
            latents: finished sample [C, h, w] f32.
            image: what was decoded from it [H, W, 3] f32 in [0, 1].
        """
        rows = _rows(latents)
        colours = _shrunk(image, latents.shape[1], latents.shape[2]).reshape(-1, 3)
        with self._lock:
            size = rows.shape[1]
            if self._products is None or self._targets is None:
                self._products, self._targets = np.zeros((size, size)), np.zeros((size, 3))
            self._products += rows.T @ rows
            self._targets += rows.T @ colours
            self._spread = float(latents.std()) or 1.0
            ridge = _RIDGE * np.trace(self._products) / size * np.eye(size)
            self._map = np.linalg.solve(self._products + ridge, self._targets)

    def picture(self, latents: np.ndarray, width: int, height: int) -> Image.Image | None:
        """Return what latents look like, in full size; None before anything was learnt.

        Args:
            latents: a sample at any step [C, h, w] f32; it is scaled to the spread of finished
                ones.
            width: pixels.
            height: pixels.
        """
        from PIL import Image

        with self._lock:
            fitted, spread = self._map, self._spread
        if fitted is None:
            return None
        scaled = latents * (spread / (float(latents.std()) or 1.0))
        colours = (_rows(scaled) @ fitted).reshape(*latents.shape[1:], 3)
        small = Image.fromarray((np.clip(colours, 0, 1) * 255).round().astype(np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)


def _rows(latents: np.ndarray) -> np.ndarray:
    """Return a row a pixel: its channels, and 1 [h * w, C + 1] f64."""
    channels = latents.reshape(latents.shape[0], -1).T.astype(np.float64)
    return np.concatenate([channels, np.ones((len(channels), 1))], axis=1)


def _shrunk(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the means of an image's blocks [height, width, 3]."""
    down, across = image.shape[0] // height, image.shape[1] // width
    cut = image[: down * height, : across * width]
    return np.asarray(cut.reshape(height, down, width, across, 3).mean(axis=(1, 3)))
