"""`TGatePipeline`: generate with a bundle. A graph for each phase, one weighted sum a step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend, BackendOptions
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.input_batch import InputBatch, Span
from tgate_export.runtime.model_runner import ModelRunner
from tgate_export.runtime.output import as_asked
from tgate_export.runtime.plan import BatchShape
from tgate_export.runtime.request import Request, check_split, make_request
from tgate_export.runtime.run_plan import Pass, RunPlans
from tgate_export.runtime.signature import Generate
from tgate_export.runtime.step_info import StepInfo
from tgate_export.runtime.text_encoder import TextEncoder
from tgate_export.runtime.timings import StepTiming, Timings

StepCallback = Callable[[StepInfo], None]


@dataclass(frozen=True)
class PipelineOutput:
    """Result of a call.

    Attributes:
        images: a list of PIL images ("pil"), images [B, H, W, 3] f32 in [0, 1] ("np"), or
            latents [B, C, h, w] f32 ("latent"). Of videos: a list of lists of frames,
            [B, F, H, W, 3], or [B, F, C, h, w].
        timings: seconds by stage and step.
        request: the call with defaults filled in, the seed among them.
    """

    images: list[Any] | np.ndarray
    timings: Timings
    request: Request


class TGatePipeline(Generate):
    """A loaded bundle. Engines load when they are first needed; buffers are kept between calls.

    Any thread may call it; calls wait for one another. A forked child of the process loads engines
    of its own on the CPU, and is refused on a GPU.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle = bundle
        self.backend = backend
        self._texts = TextEncoder(bundle)
        self._runner = ModelRunner(backend, bundle, self._texts)
        self._run_plans = RunPlans(bundle)

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        backend: str = "auto",
        *,
        check_hashes: bool = True,
        options: BackendOptions | None = None,
    ) -> TGatePipeline:
        """Open a bundle.

        Args:
            path: folder that `tgate-export build` wrote.
            backend: "auto"; "onnxruntime", or "onnxruntime:" and cpu, cuda, tensorrt or
                tensorrt-rtx; "openvino" or "openvino:bf16"; "tensorrt" or "tensorrt-rtx" for the
                bundle's plans.
            check_hashes: compare every file with its sha256 first (about a second a GB, once: see
                `open_bundle`'s `cache_hashes`).
            options: see `BackendOptions`.

        Raises:
            BundleError: the bundle is missing, damaged, or newer than this package.
            BackendError: the backend cannot be used here.
        """
        bundle = open_bundle(path, check_hashes=check_hashes, cache_hashes=True)
        return cls(bundle, select(backend, bundle, options))

    @property
    def manifest(self) -> Manifest:
        """What the bundle holds."""
        return self.bundle.manifest

    def _generate(self, arguments: dict[str, Any], callback: StepCallback | None) -> PipelineOutput:
        request = make_request(self.manifest, **arguments)
        check_split(self.manifest, request.images)
        passes = self._run_plans.of_passes(request)
        timings: Timings | None = None
        made: np.ndarray | None = None
        with self._runner.turn():
            for each in passes:
                started = perf_counter()
                run = each if made is None else each.after(made, self.manifest.latents.downscale)
                enlarged = Timings(0.0, (), 0.0, perf_counter() - started)
                made, timing = self._whole(run, callback)
                timings = timing if timings is None else timings + enlarged + timing
        assert made is not None
        assert timings is not None
        return PipelineOutput(as_asked(self.manifest, request, made), timings, request)

    def _whole(self, run: Pass, callback: StepCallback | None) -> tuple[np.ndarray, Timings]:
        """Take all of a run's images through all stages, in as few batches as there can be."""
        results: list[np.ndarray] = []
        timings: Timings | None = None
        first = 0
        while left := run.request.images - first:
            batch = self.backend.batch_size(min(left, self.manifest.batch.max))
            part = slice(first, first := first + batch)
            result, timing = self._run(run, part, callback)
            results.append(result)
            timings = timing if timings is None else timings + timing
        assert timings is not None
        return np.concatenate(results), timings

    def sampler_table(self, scheduler: str) -> SamplerTable:
        """Return a scheduler's table, read once.

        Raises:
            BundleError: when the file is not a sampler table.
        """
        return self._run_plans.table(scheduler)

    def _run(
        self, run: Pass, part: slice, callback: StepCallback | None
    ) -> tuple[np.ndarray, Timings]:
        """Take some of a run's images through all stages, in one batch that stays together."""
        request, run_plan = run.request, run.run_plan
        sampler, phases = run_plan.sampler, run_plan.step_plan.phases
        batch = self._runner.input_batch(
            BatchShape(
                part.stop - part.start, request.height, request.width,
                tuple(phase for phase in self.manifest.phases if phase in phases),
                image=request.encodes_image or not self.manifest.takes_prompt,
            )
        )  # fmt: skip
        started = perf_counter()
        images = [
            ImageState.of(self.manifest, request, index, run_plan, run.earlier, run.later)
            for index in range(part.start, part.stop)
        ]
        spans = []
        vae_decoder: Span | None = None
        try:
            # Launches may only be queued: nothing waits for the device before the end.
            vae_encoder = self._runner.encode_images(batch, images)
            text_encoder = self._runner.encode_prompts(
                batch, images, None if run.earlier else _warn
            )
            batch.stage(images)
            for step, phase in enumerate(phases):
                spans.append(batch.denoise(phase, images))
                if callback is not None:
                    timestep = float(sampler.timesteps[step])
                    callback(_step_info(batch, images, phase, timestep))
                    self.backend.turns.check()
            if request.output_type == "latent":
                result = batch.latents(images)
                for image, latents in zip(images, result, strict=True):
                    image.state["sample"] = latents  # for who asks when the run is over
            else:
                result, vae_decoder = batch.decode(images)
        finally:
            batch.abandon(images)
        self.backend.synchronize()
        ended = perf_counter()

        def seconds(span: Span | None) -> float:
            return 0.0 if span is None else self.backend.seconds(span.start, span.end)

        steps = tuple(
            StepTiming(phase, seconds(denoiser), seconds(sampling))
            for phase, (denoiser, sampling) in zip(phases, spans, strict=True)
        )
        timings = Timings(
            seconds(text_encoder), steps, seconds(vae_decoder), ended - started,
            seconds(vae_encoder) if batch.shape.image else 0.0,
        )  # fmt: skip
        return np.stack(result), timings


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=7)  # where the pipeline is called


def _step_info(
    batch: InputBatch,
    images: Sequence[ImageState],
    phase: str,
    timestep: float,
) -> StepInfo:
    first = images[0]
    return StepInfo(
        first.earlier + first.step - 1, first.evaluations, phase, timestep,
        lambda: np.stack(batch.latents(images)), batch.read,
    )  # fmt: skip
