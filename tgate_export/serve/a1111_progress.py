"""How far A1111's requests are, as `GET /sdapi/v1/progress` says it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from time import monotonic
from typing import Any

import numpy as np

from tgate_export.runtime.batching import BatchedOutput, StepProgress
from tgate_export.serve.a1111_fields import Call

_LEAST = 0.01  # of what has begun: clients take 0 for nothing under way


class Running:
    """A request under way. Steps are told in the batcher's thread, the rest is the event loop's.

    Attributes:
        call: what is being made.
        timestamp: when it came, as A1111 writes it.
        interrupted: whether somebody has ended it.
        skipped: whether somebody has by `skip`.
        finished: latents [C, h, w] f32 after the last step, by image.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.timestamp = datetime.now().strftime("%Y%m%d%H%M%S")
        self.interrupted = self.skipped = False
        self._started = monotonic()
        self._future: asyncio.Future[BatchedOutput] | None = None
        self._steps = [0] * call.images
        self._evaluations = 0
        self.finished: dict[int, np.ndarray] = {}
        self._denoised: list[Callable[[], np.ndarray] | None] = [None] * call.images
        self._shown: tuple[int, str | None] = (0, None)  # the first image's steps, and a preview

    def tell(self, progress: StepProgress) -> None:
        """Take a step; in the batcher's thread."""
        self._denoised[progress.image] = progress.denoised  # for who looks
        if progress.step + 1 == progress.evaluations:
            self.finished[progress.image] = progress.latents()
        self._evaluations = progress.evaluations
        self._steps[progress.image] = progress.step + 1

    def begin(self, future: asyncio.Future[BatchedOutput]) -> None:
        """Take what it is waiting for; it may have been interrupted while its model was loaded."""
        self._future = future
        if self.interrupted or self.skipped:
            future.cancel()

    def interrupt(self, *, skip: bool = False) -> None:
        """End it, unless it is done."""
        self.interrupted, self.skipped = self.interrupted or not skip, self.skipped or skip
        if self._future is not None:
            self._future.cancel()

    @property
    def part(self) -> float:
        """How much is done, 0 to 1."""
        return sum(self._steps) / (self._evaluations * self.call.images or 1)

    @property
    def seconds_left(self) -> float:
        """How long the rest should take, at the pace until now."""
        part = max(self.part, _LEAST)
        return (monotonic() - self._started) * (1 - part) / part

    def state(self) -> dict[str, Any]:
        """Return A1111's description of it; the steps are those of its images on average."""
        return _state(
            self.skipped, self.interrupted, f"scripts_{self.call.kind}", 1, self.timestamp,
            round(self.part * self._evaluations), self._evaluations,
        )  # fmt: skip

    def preview(self) -> str | None:
        """Return what the first image looks like now, as PNG in base64; None before a step."""
        steps, denoised = self._steps[0], self._denoised[0]
        if denoised is None:
            return None
        if self._shown[0] != steps:
            self._shown = steps, self._picture(denoised())
        return self._shown[1]

    def previews(self) -> list[str]:
        """Return what the images look like that have taken a step, as PNG in base64."""
        found = [self._picture(each()) for each in self._denoised if each is not None]
        return [each for each in found if each is not None]

    def _picture(self, denoised: np.ndarray) -> str | None:
        arguments = self.call.wanted.arguments
        model = self.call.wanted.model
        return model.preview.encoded(denoised, arguments["width"], arguments["height"], "PNG")


def progress_of(running: Running | None, preview: str | None) -> dict[str, Any]:
    """Return the answer for a request under way, or for none."""
    if running is None:
        return _progress(0.0, 0.0, _state(False, False, "", 0, "0", 0, 0), None)
    part = _LEAST + (1 - _LEAST) * running.part
    return _progress(part, running.seconds_left, running.state(), preview)


def _progress(
    part: float, seconds_left: float, state: dict[str, Any], preview: str | None
) -> dict[str, Any]:
    return {
        "progress": part, "eta_relative": seconds_left, "state": state, "current_image": preview,
        "textinfo": None,
    }  # fmt: skip


def _state(
    skipped: bool, interrupted: bool, job: str, count: int, timestamp: str, step: int, steps: int
) -> dict[str, Any]:
    return {
        "skipped": skipped, "interrupted": interrupted, "stopping_generation": False, "job": job,
        "job_count": count, "job_timestamp": timestamp, "job_no": 0, "sampling_step": step,
        "sampling_steps": steps,
    }  # fmt: skip
