"""A run that is ready to launch: its buffers, filled from a request, and its bound launches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.backends.base import Backend, Execute, Memory
from tgate_export.runtime.backends.launching import bind
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.plan import BindingPlan, RunShape, Slot, plan_run
from tgate_export.runtime.prompts import encoder_buffer, encoder_rows, encoder_values
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

    def begin(
        self,
        manifest: Manifest,
        tokenizers: Mapping[str, PromptTokenizer],
        states: Sequence[ImageState],
    ) -> None:
        """Fill every host-made buffer; after this the loop only launches.

        Args:
            manifest: the bundle's.
            tokenizers: the bundle's, by name.
            states: of the images, at their first evaluations; all run the same plan.
        """
        for buffer, spec in self.plan.buffers.items():
            if any(buffer in state.state for state in states):
                # Some have none: those whose negative conditions are their prompts', which follow.
                rows = np.zeros(spec.shape, spec.dtype)
                for row, state in enumerate(states):
                    rows[row] = state.state.get(buffer, 0)
                self.memory.write(Slot(buffer), rows)
        for prefix in ("", NEGATIVE):
            if any(prefix in state.texts for state in states):
                self._write_texts(manifest, tokenizers, states, prefix)
        sampler = states[0].run_plan.sampler
        for step, (timestep, weights) in enumerate(
            zip(sampler.timesteps, sampler.weights, strict=True)
        ):
            batch = len(states)
            self.memory.write(Slot("timestep", step), np.full(batch, timestep, dtype=np.float32))
            self.memory.write(Slot("weights", step), np.tile(weights, (batch, 1)))
            if sampler.draws_noise:
                noise = np.stack([state.noise(step) for state in states])
                self.memory.write(Slot("noise", step), noise)

    def encode_pictures(self, states: Sequence[ImageState]) -> None:
        """Encode what the VAE is to encode, if anything, before a run begins.

        What a video's denoiser is told stays where it reads it.
        """
        launch = self.plan.encode_image
        if self.encode_image is None or launch is None:
            return
        (slot,), (output,) = launch.inputs.values(), launch.outputs.values()
        pictures = [state.image for state in states if state.image is not None]
        self.memory.write(slot, np.stack(pictures))
        self.encode_image()
        if states[0].request.begins_with_image:
            for state, latents in zip(states, self.memory.read(output), strict=True):
                state.begin_with_image(latents)

    def replace_negatives(self, manifest: Manifest, states: Sequence[ImageState]) -> None:
        """Give the images that are not guided their prompt's conditions as the negative ones.

        To be called once the prompts are encoded.
        """
        rows = [row for row, state in enumerate(states) if state.alone]
        if not rows:
            return
        for tensor in manifest.graph(manifest.prompt_encoder).outputs:
            values = self.memory.read_rows(Slot(tensor.name), rows)
            self.memory.write_rows(
                Slot(NEGATIVE + tensor.name), dict(zip(rows, values, strict=True))
            )

    def _write_texts(
        self,
        manifest: Manifest,
        tokenizers: Mapping[str, PromptTokenizer],
        states: Sequence[ImageState],
        prefix: str,
    ) -> None:
        """Fill what the text encoder reads for the prompts, or for the negative ones."""
        request, negative = states[0].request, bool(prefix)
        values = {
            name: [each[state.index] for state in states] for name, each in request.values.items()
        }
        rows = encoder_rows(
            manifest, tokenizers, [state.texts.get(prefix, "") for state in states],
            encoder_values(manifest, values, negative=negative),
        )  # fmt: skip
        for name, array in rows.items():
            self.memory.write(Slot(encoder_buffer(manifest, name, negative=negative)), array)

    def step_info(self, index: int, timestep: float) -> StepInfo:
        """Return what a callback is told after evaluation `index`."""
        launch = self.plan.steps[index][1]
        latents = launch.outputs["next_sample"]
        phases = self.shape.step_plan.phases
        return StepInfo(
            index, len(phases), phases[index], timestep, lambda: self.memory.read(latents),
            lambda name: self.memory.read(Slot(name)),
        )  # fmt: skip
