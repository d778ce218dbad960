"""`TGatePipeline`: draw with a bundle. A graph for each phase, one weighted sum a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from tgate_export.runtime.plan import RunShape, Slot
from tgate_export.runtime.prompts import Embeds, needs_encoding
from tgate_export.runtime.request import Request, check_split, make_request
from tgate_export.runtime.run import PreparedRun, StepInfo
from tgate_export.runtime.run_plan import RunPlans
from tgate_export.runtime.timings import StepTiming, Timings
from tgate_export.runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from PIL import Image


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


class TGatePipeline:
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

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: Embeds | None = None,
        num_inference_steps: int | None = None,
        gate_step: int | None = None,
        sp_interval: int | None = None,
        fi_interval: int | None = None,
        warm_up: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        clip_skip: int = 0,
        scheduler: str | None = None,
        seed: int | None = None,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        image: str | Path | Image.Image | np.ndarray | Sequence[Any] | None = None,
        strength: float | None = None,
        fps: int | None = None,
        motion_bucket_id: int | None = None,
        noise_aug_strength: float | None = None,
        min_guidance_scale: float | None = None,
        latents: np.ndarray | None = None,
        output_type: str = "pil",
        callback_on_step_end: StepCallback | None = None,
    ) -> PipelineOutput:
        """Draw one image for each prompt, or several.

        Args:
            prompt: one or more prompts.
            negative_prompt: what to avoid; one for all prompts, or one each. Without one it is
                the empty text, or zero embeddings for a model that was trained so (SDXL).
            prompt_embeds: instead of `prompt`, what the text encoder makes of it [B, T, D]; where
                it makes more than one tensor (`inspect --json`), a mapping from each one's name
                to its array, such as SDXL's `prompt_embeds` and `text_embeds`. Arrays of numpy or
                tensors of torch, of any type and on any device.
            negative_prompt_embeds: the same instead of `negative_prompt`; one for all prompts, or
                one each.
            num_inference_steps: denoising steps; the bundle's default when not given.
            gate_step: first step that reuses cross-attention and drops guidance; at
                `num_inference_steps` or more there is none. By default the bundle's, scaled to
                the number of steps.
            sp_interval: before the gate, self-attention is computed in steps that are multiples of
                this and reused in between; 1 computes it in every step. As the two below, the
                bundle's default when not given.
            fi_interval: the same from the gate on.
            warm_up: self-attention is computed in steps 0 to this one, whatever `sp_interval`.
            guidance_scale: weight of classifier-free guidance before the gate; one for all
                prompts, or one each. At 1 or less a prompt is drawn without guidance and its
                negative prompt is ignored, as in diffusers.
            guidance_rescale: 0 to 1: how far guidance is rescaled to the standard deviation that
                it would have without (arXiv 2305.08891), against overexposure.
            clip_skip: how many of the CLIP text encoder's last layers the prompts skip; negative
                prompts skip none, as in diffusers.
            scheduler: a sampler that the bundle holds, such as "ddim" or "dpm++2m".
            seed: 0 .. 2^64 - 1; random when not given.
            num_images_per_prompt: images of each prompt, with different starting latents.
            height: pixels; the bundle's default when not given.
            width: pixels; the bundle's default when not given.
            original_size: SDXL: (height, width) that the model is told the image had before
                scaling; the image's own when not given.
            crops_coords_top_left: SDXL: (top, left) of the crop that it is told; (0, 0).
            target_size: SDXL: (height, width) that it is told; the image's own when not given.
            image: what a video is drawn from; or, for a bundle built with image-to-image, what to
                begin with instead of noise:
                a file, a PIL image in RGB, or an array [H, W, 3], 8-bit or floats in [0, 1]; one
                for all prompts, or one each. Its size is that of the result.
            strength: how much of the image is drawn anew, above 0 to 1: the last
                `int(num_inference_steps * strength)` steps run, and `gate_step` counts those;
                0.8 when not given.
            fps: of a video: frames a second that the model is told; 7.
            motion_bucket_id: of a video: how much is to move, about 0 to 255; 127.
            noise_aug_strength: of a video: deviation of the noise on its image in [-1, 1]; more
                gives more motion and less likeness; 0.02.
            min_guidance_scale: of a video: the first frame's, which rises to `guidance_scale` at
                the last; 1. Where neither is above 1 no frame is guided.
            latents: starting latents [B, C, h, w], of a video [B, F, C, h, w], of unit variance,
                instead of a seed.
            output_type: "pil", "np" or "latent".
            callback_on_step_end: called after each denoiser evaluation; an exception ends the run.
                It cannot call this pipeline, nor wait for another thread that does.

        Raises:
            InvalidRequestError: an argument out of range; the message names it. Or a callback
                called the pipeline that it is called by.
        """
        request = make_request(
            self.manifest,
            prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            num_inference_steps=num_inference_steps,
            gate_step=gate_step,
            sp_interval=sp_interval,
            fi_interval=fi_interval,
            warm_up=warm_up,
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            clip_skip=clip_skip,
            scheduler=scheduler,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            height=height,
            width=width,
            original_size=original_size,
            crops_coords_top_left=crops_coords_top_left,
            target_size=target_size,
            image=image,
            strength=strength,
            fps=fps,
            motion_bucket_id=motion_bucket_id,
            noise_aug_strength=noise_aug_strength,
            min_guidance_scale=min_guidance_scale,
            latents=latents,
            output_type=output_type,
        )
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
                result, timing = self._run(request, part, callback_on_step_end)
                results.append(result)
                timings = timing if timings is None else timings + timing
        assert timings is not None
        stacked = np.concatenate(results)
        frames = self.manifest.latents.frames
        if request.output_type == "latent" and frames is not None:
            stacked = stacked.reshape(len(stacked), frames, -1, *stacked.shape[2:])
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
                sampler.draws_noise, image=request.image is not None,
            )
        )  # fmt: skip
        started = perf_counter()
        mark, seconds = self.backend.mark, self.backend.seconds
        image_started = mark()
        image_latents = run.image_latents(request, part)
        image_encoded = mark()
        run.write_inputs(self.manifest, self._tokenizers, request, part, sampler, image_latents)
        # Launches may only be queued: nothing waits for the device before the end.
        encode_started = mark()
        for execute, prompts in zip(
            run.encode, (request.prompts, request.negative_prompts), strict=False
        ):
            if prompts is not None and needs_encoding(self.manifest, prompts):
                execute()
        run.replace_negatives(self.manifest, request, part)
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
            ended - started, 0.0 if image_latents is None else image_seconds,
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
