"""A run that is ready to launch: its buffers, filled from a request, and its bound launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromImage
from tgate_export.bundle.sampler_table import HISTORY, SamplerSteps
from tgate_export.runtime.backends.base import Backend, Execute, Memory
from tgate_export.runtime.backends.launching import bind
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.guidance import by_prompt_alone
from tgate_export.runtime.inputs import host_inputs, host_row
from tgate_export.runtime.noise import IMAGE_NOISE, standard_normal
from tgate_export.runtime.plan import BindingPlan, RunShape, Slot, plan_run
from tgate_export.runtime.prompts import encoder_buffer, encoder_rows, encoder_values
from tgate_export.runtime.request import Request
from tgate_export.runtime.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class StepInfo:
    """What a callback learns after a step.

    Attributes:
        step: index of the denoiser evaluation that has ended.
        evaluations: how many there are in this run.
        phase: the graph that ran.
        timestep: what the denoiser was given, in training steps.
        latents: returns the current sample [B, C, h, w] f32, copied to the host when called.
        tensor: returns a buffer by its tensor's name, such as a cache, in the same way.

    A GPU may still be at an earlier step: a step is only queued, and `latents` waits for it.
    """

    step: int
    evaluations: int
    phase: str
    timestep: float
    latents: Callable[[], np.ndarray]
    tensor: Callable[[str], np.ndarray]


@dataclass(frozen=True)
class PreparedRun:
    """Buffers and bound launches for one run shape; reused by every call of that shape."""

    shape: RunShape
    plan: BindingPlan
    memory: Memory
    encode: tuple[Execute, ...]
    encode_image: Execute | None
    steps: tuple[tuple[Execute, Execute], ...]
    decode: Execute

    @classmethod
    def create(cls, backend: Backend, manifest: Manifest, shape: RunShape) -> PreparedRun:
        """Allocate and bind for a run's shape."""
        plan = plan_run(manifest, shape)
        memory = backend.allocate(plan)
        return cls(
            shape=shape,
            plan=plan,
            memory=memory,
            encode=tuple(bind(backend, launch, memory) for launch in plan.encode),
            encode_image=bind(backend, plan.encode_image, memory) if plan.encode_image else None,
            steps=tuple(
                (bind(backend, denoiser, memory), bind(backend, sampler, memory))
                for denoiser, sampler in plan.steps
            ),
            decode=bind(backend, plan.decode, memory),
        )

    def image_latents(self, manifest: Manifest, request: Request, part: slice) -> np.ndarray | None:
        """Encode the images that the run begins with [B, C, h, w] f32, if it does.

        Those of a video stay where the denoiser reads them.
        """
        launch = self.plan.encode_image
        if self.encode_image is None or launch is None:
            return None
        (tensor,) = manifest.graph(launch.graph).inputs
        assert isinstance(tensor.origin, FromImage)  # the manifest was checked
        images = request.pictures[tensor.origin.image][part]
        if tensor.origin.noise is not None:
            # The graph maps [0, 1] to [-1, 1], where the noise has this deviation.
            deviations = np.array(request.values[tensor.origin.noise][part], np.float32) / 2
            noise = _draw((len(images), 3, *images.shape[1:3]), request.seed, part.start,
                          IMAGE_NOISE)  # fmt: skip
            images = images + deviations[:, None, None, None] * noise.transpose(0, 2, 3, 1)
        (slot,) = launch.inputs.values()
        self.memory.write(slot, images)
        self.encode_image()
        if not request.begins_with_image:
            return None
        (latents,) = launch.outputs.values()
        return self.memory.read(latents)

    def write_inputs(
        self,
        manifest: Manifest,
        tokenizers: Mapping[str, PromptTokenizer],
        request: Request,
        part: slice,
        sampler: SamplerSteps,
        image_latents: np.ndarray | None,
    ) -> None:
        """Fill every host-made buffer; after this the loop only launches."""
        batch = self.shape.batch
        write = self.memory.write
        self._write_prompts(manifest, tokenizers, request, part)
        for buffer, tensor in host_inputs(manifest, self.shape.step_plan.phases).items():
            indices = range(part.start, part.stop)
            rows = [host_row(manifest, request, index, tensor) for index in indices]
            write(Slot(buffer), np.stack(rows))
        for step, (timestep, weights) in enumerate(
            zip(sampler.timesteps, sampler.weights, strict=True)
        ):
            write(Slot("timestep", step), np.full(batch, timestep, dtype=np.float32))
            write(Slot("weights", step), np.tile(weights, (batch, 1)))
        shape = self.plan.buffers["sample.0"].shape
        if request.latents is not None:
            latents = request.latents[part]
        else:
            latents = _draw(shape, request.seed, part.start)
        if sampler.draws_noise:
            for step in range(len(sampler.timesteps)):
                write(Slot("noise", step), _draw(shape, request.seed, part.start, step + 1))
        sample, denoiser_input = first_sample(sampler, latents, image_latents)
        write(Slot("sample.0"), sample)
        write(Slot("denoiser_input"), denoiser_input)
        write(Slot("history.0"), np.zeros((batch, HISTORY, *shape[1:]), dtype=np.float32))

    def replace_negatives(self, manifest: Manifest, request: Request, part: slice) -> None:
        """Give the images that are not guided their prompt's conditions as the negative ones.

        To be called once the prompts are encoded.
        """
        scales = request.guidance_scales[part]
        rows = [row for row, scale in enumerate(scales) if by_prompt_alone(manifest, scale)]
        if not rows:
            return
        for tensor in manifest.graph(manifest.prompt_encoder).outputs:
            values = self.memory.read_rows(Slot(tensor.name), rows)
            self.memory.write_rows(
                Slot(NEGATIVE + tensor.name), dict(zip(rows, values, strict=True))
            )

    def _write_prompts(
        self,
        manifest: Manifest,
        tokenizers: Mapping[str, PromptTokenizer],
        request: Request,
        part: slice,
    ) -> None:
        """Fill the prompt encoder's inputs, or its outputs where the call brings them."""
        both = ((False, request.prompts), (True, request.negative_prompts))
        for negative, prompts in both if manifest.takes_negative else both[:1]:
            if prompts is None:  # or the prompts' own, once they are encoded
                rows = {
                    tensor.name: np.zeros(self.plan.buffers[NEGATIVE + tensor.name].shape,
                                          tensor.dtype)
                    for tensor in manifest.graph(manifest.prompt_encoder).outputs
                }  # fmt: skip
            elif isinstance(prompts, dict):
                rows = {name: value[part] for name, value in prompts.items()}
            else:
                values = {name: each[part] for name, each in request.values.items()}
                rows = encoder_rows(
                    manifest, tokenizers, prompts[part],
                    encoder_values(manifest, values, negative=negative),
                )  # fmt: skip
            for name, array in rows.items():
                buffer = encoder_buffer(manifest, name, negative=negative)
                self.memory.write(Slot(buffer), array)

    def step_info(self, index: int, timestep: float) -> StepInfo:
        """Return what a callback is told after evaluation `index`."""
        launch = self.plan.steps[index][1]
        latents = launch.outputs["next_sample"]
        phases = self.shape.step_plan.phases
        return StepInfo(
            index, len(phases), phases[index], timestep, lambda: self.memory.read(latents),
            lambda name: self.memory.read(Slot(name)),
        )  # fmt: skip


def first_sample(
    sampler: SamplerSteps, latents: np.ndarray, image_latents: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return where a run begins, and that as the denoiser takes it.

    Args:
        sampler: the run's steps.
        latents: of unit variance [..., C, h, w] f32.
        image_latents: those of the image that it begins with, if it does; of the same shape.
    """
    sample = latents * np.float32(sampler.sample_scale)
    if image_latents is not None:
        sample += image_latents * np.float32(sampler.image_scale)
    return sample, sample * np.float32(sampler.input_scale)


def _draw(shape: tuple[int, ...], seed: int, first: int, draw: int = 0) -> np.ndarray:
    """Draw unit-variance noise [B, C, h, w] for images `first`, `first + 1`, ... of a call."""
    images = range(first, first + shape[0])
    return np.stack([standard_normal(shape[1:], seed, image, draw) for image in images])
