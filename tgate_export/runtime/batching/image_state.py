"""One image on its way: what it has of every tensor, and what it needs next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_table import HISTORY
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.guidance import by_prompt_alone
from tgate_export.runtime.inputs import host_inputs, host_row
from tgate_export.runtime.noise import standard_normal
from tgate_export.runtime.prompts import Prompts
from tgate_export.runtime.request import Request
from tgate_export.runtime.run import first_sample
from tgate_export.runtime.run_plan import RunPlan
from tgate_export.steps.step_plan import Evaluation

State = dict[str, np.ndarray]
Stage = str  # a phase, "encode", "decode" or "done"


@dataclass(eq=False)
class ImageState:
    """The run of one image. Its tensors are rows of the batch's buffers, by the same names.

    Attributes:
        request: what it belongs to.
        index: which of the request's images it is.
        run_plan: its evaluations.
        state: rows by buffer, as the next evaluation reads them.
        texts: what is to be encoded before the first evaluation, by the prefix of its tensors.
        image: what the VAE is to encode before the first evaluation [H, W, 3] f32, if anything.
        alone: its prompt's conditions are also its negative ones.
        due: the moment by which it should be done; see `policy.due`.
        step: the next evaluation.
        left: evaluations to come, by phase.
        row: its place in the last call.
        result: the image [H, W, 3], or the latents [C, h, w] if those were asked for.
    """

    request: Request
    index: int
    run_plan: RunPlan
    state: State
    texts: dict[str, str]
    image: np.ndarray | None
    alone: bool = False
    due: float = 0.0
    step: int = 0
    row: int | None = None
    result: np.ndarray | None = None
    left: Counter[str] = field(init=False)
    _zeros: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._zeros = np.zeros_like(self.state["history.0"][0])
        self.left = Counter(self.run_plan.step_plan.phases)
        if self.image is None:
            self._begin(None)

    @classmethod
    def of(cls, manifest: Manifest, request: Request, index: int, route: RunPlan) -> ImageState:
        """Prepare one of a request's images, with exactly the noise of a run of its own."""
        _, *shape = manifest.latents.shape(1, request.height, request.width)
        state: State = {"history.0": np.zeros((HISTORY, *shape), np.float32)}
        for buffer, tensor in host_inputs(manifest, manifest.phases).items():
            state[buffer] = host_row(manifest, request, index, tensor)
        texts, embeds = _split(request.prompts, index, "")
        alone = by_prompt_alone(manifest, request.guidance_scales[index])
        if alone:  # a text's conditions follow when it is encoded
            embeds |= {NEGATIVE + name: row for name, row in embeds.items()}
        elif request.negative_prompts is not None:
            more_texts, more_embeds = _split(request.negative_prompts, index, NEGATIVE)
            texts, embeds = texts | more_texts, embeds | more_embeds
        elif manifest.takes_negative:
            for output in manifest.graph(manifest.prompt_encoder).outputs:
                row = tuple(int(dim) for dim in output.shape[1:])
                state[NEGATIVE + output.name] = np.zeros(row, output.dtype)
        image = request.pictures["image"][index] if request.begins_with_image else None
        return cls(request, index, route, state | embeds, texts, image, alone)

    @property
    def stage(self) -> Stage:
        """What it needs next."""
        if self.texts or self.image is not None:
            return "encode"
        phases = self.run_plan.step_plan.phases
        if self.step < len(phases):
            return phases[self.step]
        return "decode" if self.result is None else "done"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels; a call has one size."""
        return self.request.height, self.request.width

    def begin_with_image(self, latents: np.ndarray) -> None:
        """Start from an encoded image [C, h, w] instead of from noise alone."""
        self._begin(latents)
        self.image = None

    @property
    def evaluation(self) -> Evaluation:
        """The next evaluation of the denoiser."""
        return self.run_plan.step_plan.evaluations[self.step]

    def advance(self, rows: dict[str, np.ndarray]) -> None:
        """Note what an evaluation made."""
        self.state |= rows
        self.left[self.evaluation.phase] -= 1
        self.step += 1

    def end(self, result: np.ndarray) -> None:
        """Note the result, and let go of everything else."""
        self.result = result
        self.state = {"sample.0": self.state["sample.0"]}

    def _begin(self, image_latents: np.ndarray | None) -> None:
        """Draw the first sample, the same at every call."""
        if self.request.latents is not None:
            latents = self.request.latents[self.index]
        else:
            latents = standard_normal(self._zeros.shape, self.request.seed, self.index)
        sample, denoiser_input = first_sample(self.run_plan.sampler, latents, image_latents)
        self.state |= {"sample.0": sample, "denoiser_input": denoiser_input}

    def input(self, buffer: str) -> np.ndarray:
        """Return the row that the next evaluation reads from a buffer."""
        sampler = self.run_plan.sampler
        if buffer == "timestep":
            return sampler.timesteps[self.step, ...]
        if buffer == "weights":
            return sampler.weights[self.step]
        if buffer == "noise":
            if not sampler.draws_noise:
                return self._zeros
            return standard_normal(self._zeros.shape, self.request.seed, self.index, self.step + 1)
        return self.state[buffer]


def _split(prompts: Prompts, index: int, prefix: str) -> tuple[dict[str, str], State]:
    """Return an image's text to encode, or what the call brings in its place."""
    if isinstance(prompts, dict):
        return {}, {prefix + name: value[index] for name, value in prompts.items()}
    return {prefix: prompts[index]}, {}
