"""Pictures of unfinished latents: a linear map from latent channels to colours.

Which map depends on the model's autoencoder, so it is fitted to pictures that the model itself has
made, by least squares: three colours from the channels and a constant. It costs next to nothing
beside a decoder's call, and shows shapes and colours.
"""

from __future__ import annotations

import base64
import io
import threading
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from tgate_export.runtime.batching import Batcher, StepProgress
    from tgate_export.runtime.request import Request

_RIDGE = 1e-3  # keeps the map bounded where a picture leaves it free
# What is made of these is fitted to when a model is loaded: as many as there is time for.
_PROMPTS = (
    "a red circle on a blue background",
    "a green square on a yellow background",
    "a white triangle on a black background",
    "a purple star on an orange background",
    "a photograph of a landscape under a clear sky",
    "a black cat on a white sofa",
)
_STEPS = 8
_SECONDS = 2.0


class LatentPreview:
    """The map of one model; any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._products: np.ndarray | None = None  # [C + 1, C + 1], sums over pixels
        self._targets: np.ndarray | None = None  # [C + 1, 3]
        self._map: np.ndarray | None = None

    def learn_from(self, batcher: Batcher) -> None:
        """Fit the map to pictures of a few steps, so that the first caller sees something."""
        manifest = batcher.manifest
        steps = min(_STEPS, manifest.samplers[manifest.defaults.scheduler].max_steps)
        if manifest.pictures or not manifest.takes_prompt:
            return
        until = monotonic() + _SECONDS
        for seed, prompt in enumerate(_PROMPTS):
            request = batcher.request(
                prompt, num_inference_steps=steps, gate_step=steps, seed=seed, output_type="np"
            )
            self.learn(*_finished(batcher, request))
            if monotonic() > until:
                return

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
            ridge = _RIDGE * np.trace(self._products) / size * np.eye(size)
            self._map = np.linalg.solve(self._products + ridge, self._targets)

    def picture(self, latents: np.ndarray, width: int, height: int) -> Image.Image | None:
        """Return what latents look like, in full size; None before anything was learnt.

        Args:
            latents: what a step says that the run will end with [C, h, w] f32.
            width: pixels.
            height: pixels.
        """
        from PIL import Image

        with self._lock:
            fitted = self._map
        if fitted is None:
            return None
        colours = (_rows(latents) @ fitted).reshape(*latents.shape[1:], 3)
        small = Image.fromarray((np.clip(colours, 0, 1) * 255).round().astype(np.uint8))
        return small.resize((width, height), Image.Resampling.BICUBIC)

    def encoded(self, latents: np.ndarray, width: int, height: int, kind: str) -> str | None:
        """Return `picture` as a file of a kind that Pillow knows, in base64."""
        picture = self.picture(latents, width, height)
        if picture is None:
            return None
        content = io.BytesIO()
        picture.save(content, kind)
        return base64.b64encode(content.getvalue()).decode()


def _finished(batcher: Batcher, request: Request) -> tuple[np.ndarray, np.ndarray]:
    """Return the last latents of a request's one image, and the image."""
    latents: list[np.ndarray] = []

    def note(step: StepProgress) -> None:
        latents[:] = [step.latents()]

    output = batcher.submit(request, on_step=note).result()
    return latents[0], np.asarray(output.images)[0]


def _rows(latents: np.ndarray) -> np.ndarray:
    """Return a row a pixel: its channels, and 1 [h * w, C + 1] f64."""
    channels = latents.reshape(latents.shape[0], -1).T.astype(np.float64)
    return np.concatenate([channels, np.ones((len(channels), 1))], axis=1)


def _shrunk(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the means of an image's blocks [height, width, 3]."""
    down, across = image.shape[0] // height, image.shape[1] // width
    cut = image[: down * height, : across * width]
    return np.asarray(cut.reshape(height, down, width, across, 3).mean(axis=(1, 3)))
