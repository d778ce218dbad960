"""`TGatePipeline`: generate with a bundle. A graph for each phase, one weighted sum a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend, BackendOptions
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.plan import RunShape, Slot
from tgate_export.runtime.prompts import needs_encoding
from tgate_export.runtime.request import Request, check_split, make_request
from tgate_export.runtime.run import PreparedRun, StepInfo
from tgate_export.runtime.run_plan import RunPlans
from tgate_export.runtime.signature import Generate
from tgate_export.runtime.timings import StepTiming, Timings
from tgate_export.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    pass


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
        specs = bundle.manifest.tokenizers
        with bundle.reading(*(spec.file for spec in specs.values())):
            self._tokenizers = {
                name: PromptTokenizer(bundle.file(spec.file), spec) for name, spec in specs.items()
            }
        self._run_plans = RunPlans(bundle)
        self._prepared: PreparedRun | None = None

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
        results: list[np.ndarray] = []
        timings: Timings | None = None
        first = 0
        with self.backend.turns.take(self) as still_bound:
            if not still_bound:
                self._prepared = None
            self.backend.check_files()
            while left := request.images - first:
                batch = self.backend.batch_size(min(left, self.manifest.batch.max))
                part = slice(first, first := first + batch)
                result, timing = self._run(request, part, callback)
                results.append(result)
                timings = timing if timings is None else timings + timing
        assert timings is not None
        stacked = np.concatenate(results)
        if request.output_type == "latent":
            stacked = stacked.reshape(self.manifest.latents.unfolded(stacked.shape))
        images = to_pil(stacked) if request.output_type == "pil" else stacked
        return PipelineOutput(images, timings, request)

    def sampler_table(self, scheduler: str) -> SamplerTable:
        """Return a scheduler's table, read once.

        Raises:
            BundleError: when the file is not a sampler table.
        """
        return self._run_plans.table(scheduler)

    def _run(
        self, request: Request, part: slice, callback: StepCallback | None
    ) -> tuple[np.ndarray, Timings]:
        run_plan = self._run_plans.of(request)
        sampler, step_plan = run_plan.sampler, run_plan.step_plan
        run = self._prepare(
            RunShape(
                part.stop - part.start, request.height, request.width, step_plan,
                sampler.draws_noise,
                image=request.begins_with_image or not self.manifest.takes_prompt,
            )
        )  # fmt: skip
        started = perf_counter()
        mark, seconds = self.backend.mark, self.backend.seconds
        states = [
            ImageState.of(self.manifest, request, index, run_plan)
            for index in range(part.start, part.stop)
        ]
        image_started = mark()
        run.encode_pictures(states)
        image_encoded = mark()
        run.begin(self.manifest, self._tokenizers, states)
        # Launches may only be queued: nothing waits for the device before the end.
        encode_started = mark()
        for execute, prompts in zip(
            run.encode, (request.prompts, request.negative_prompts), strict=False
        ):
            if prompts is not None and needs_encoding(self.manifest, prompts):
                execute()
        run.replace_negatives(self.manifest, states)
        encoded = mark()
        marks = []
        for index, (denoise, solve) in enumerate(run.steps):
            before = mark()
            denoise()
            between = mark()
            solve()
            marks.append((before, between, mark()))
            if callback is not None:
                callback(run.step_info(index, float(sampler.timesteps[index])))
                self.backend.turns.check()
        decode_started = decoded = mark()
        if request.output_type == "latent":
            result = run.memory.read(run.plan.latents)
        else:
            run.decode()
            decoded = mark()
            result = run.memory.read(Slot("images"))
        self.backend.synchronize()
        ended = perf_counter()
        image_seconds = seconds(image_started, image_encoded)
        steps = tuple(
            StepTiming(phase, seconds(before, between), seconds(between, after))
            for phase, (before, between, after) in zip(step_plan.phases, marks, strict=True)
        )
        return result, Timings(
            seconds(encode_started, encoded), steps, seconds(decode_started, decoded),
            ended - started, image_seconds if run.encode_image else 0.0,
        )  # fmt: skip

    def _prepare(self, shape: RunShape) -> PreparedRun:
        """Allocate and bind for a run's shape, or return what the last call of it used."""
        if self._prepared is None or self._prepared.shape != shape:
            self._prepared = None  # free the old buffers first
            self._prepared = PreparedRun.create(self.backend, self.manifest, shape)
        return self._prepared


def to_pil(images: np.ndarray) -> list[Any]:
    """Convert images [B, H, W, 3] in [0, 1] to 8-bit PIL images, rounding as diffusers does.

    Videos [B, F, H, W, 3] become lists of them.
    """
    from PIL import Image

    if images.ndim == 5:
        return [to_pil(video) for video in images]
    return [Image.fromarray(image) for image in (images * 255).round().astype(np.uint8)]
