"""One image on its way: what it has of every tensor, and what it needs next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromImage
from tgate_export.bundle.sampler_table import HISTORY, SamplerSteps
from tgate_export.runtime.backends.base import Row
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.guidance import by_prompt_alone
from tgate_export.runtime.inputs import host_rows
from tgate_export.runtime.noise import IMAGE_NOISE, standard_normal
from tgate_export.runtime.prompts import Prompts, needs_encoding
from tgate_export.runtime.request import Request
from tgate_export.runtime.run_plan import RunPlan

State = dict[str, Row]
Stage = str  # a phase, "encode", "decode" or "done"
# What the loop gives the graphs of each step.
LOOP = ("timestep", "weights", "noise")
# What each step makes for the next one, besides caches.
_CARRIED = frozenset({"sample", "history", "denoiser_input"})


@dataclass(eq=False)
class ImageState:
    """The run of one image. Its tensors are rows of the batch's buffers, by the same names.

    Attributes:
        request: what it belongs to.
        index: which of the request's images it is.
        shape: of its sample [C, h, w].
        run_plan: its evaluations.
        state: rows by name, as the next evaluation reads them, but for those that are kept.
        prompts: what is to be encoded before the first evaluation, by the prefix of its tensors: a
            text, rows of the prompt encoder's inputs, or of its outputs for too few tokens.
        image: what the VAE is to encode before the first evaluation [H, W, 3] f32, if anything.
        alone: its prompt's conditions are also its negative ones.
        earlier: evaluations of passes that came before.
        later: phases of passes that are to come.
        due: the moment by which it should be done; see `policy.due`.
        step: the next evaluation.
        left: evaluations to come, by phase; those of later passes with them.
        row: its place in the last call.
        kept: what is in that row and newer than the state.
        abandoned: nobody waits for it any more.
        result: the image [H, W, 3], or the latents [C, h, w] if those were asked for.
    """

    request: Request
    index: int
    shape: tuple[int, ...]
    run_plan: RunPlan
    state: State
    prompts: dict[str, str | dict[str, np.ndarray]]
    image: np.ndarray | None
    alone: bool = False
    earlier: int = 0
    later: tuple[str, ...] = ()
    due: float = 0.0
    step: int = 0
    row: int | None = None
    kept: set[str] = field(default_factory=set)
    abandoned: bool = False
    result: np.ndarray | None = None
    left: Counter[str] = field(init=False)

    def __post_init__(self) -> None:
        self.left = Counter(self.run_plan.step_plan.phases)
        self.left.update(self.later)
        if self.request.image_latents is not None:
            self.begin(self.request.image_latents[self.index])
        elif not self.request.begins_with_image:
            self.begin()

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        request: Request,
        index: int,
        route: RunPlan,
        earlier: int = 0,
        later: tuple[str, ...] = (),
    ) -> ImageState:
        """Prepare one of a request's images, with exactly the noise of a run of its own."""
        _, *shape = manifest.latents.shape(1, request.height, request.width)
        state: State = {
            "history": _zeros((HISTORY, *shape)),
            **host_rows(manifest, request, index),
        }
        texts, embeds = _split(manifest, request.prompts, index)
        alone = by_prompt_alone(manifest, request.guidance_scales[index])
        if alone:  # a text's conditions follow when it is encoded
            embeds |= {NEGATIVE + name: row for name, row in embeds.items()}
        elif request.negative_prompts is not None:
            more_texts, more_embeds = _split(manifest, request.negative_prompts, index, NEGATIVE)
            texts, embeds = texts | more_texts, embeds | more_embeds
        elif manifest.takes_negative:
            for output in manifest.graph(manifest.prompt_encoder).outputs:
                row = [int(dim) for dim in output.shape[1:]]
                row[0] *= manifest.chunks.get(output.name, 1)
                state[NEGATIVE + output.name] = np.zeros(row, output.dtype)
        image = vae_picture(manifest, request, index)
        return cls(
            request, index, tuple(shape), route, state | embeds, texts, image, alone, earlier, later
        )

    @property
    def evaluations(self) -> int:
        """How many there are, those of other passes with them."""
        return self.earlier + len(self.run_plan.step_plan.phases) + len(self.later)

    @property
    def stage(self) -> Stage:
        """What it needs next."""
        if self.prompts or self.image is not None:
            return "encode"
        phases = self.run_plan.step_plan.phases
        if self.step < len(phases):
            return phases[self.step]
        return "decode" if self.result is None else "done"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels; a call has one size."""
        return self.request.height, self.request.width

    @property
    def wants_latents(self) -> bool:
        """Whether its sample is the result, and is not to be decoded."""
        return self.request.output_type == "latent"

    @property
    def needs(self) -> frozenset[str]:
        """What of its row it will read again."""
        if self.abandoned or self.result is not None:
            return frozenset()
        evaluations = self.run_plan.step_plan.evaluations[self.step :]
        if not evaluations:
            return frozenset({"sample"})
        read: set[str] = set()
        written: set[str] = set()
        for evaluation in evaluations:
            read.update(name for name in evaluation.reads if name not in written)
            written.update(evaluation.writes)
        return _CARRIED | read

    def begin(self, image_latents: np.ndarray | None = None) -> None:
        """Make the first sample, the same at every call, of noise and an encoded image [C, h, w].

        Args:
            image_latents: those of the image that it begins with, if it does.
        """
        if self.request.latents is not None:
            latents = self.request.latents[self.index]
        else:
            latents = standard_normal(
                self.shape, self.request.seed, self.index, self.request.noise_offset
            )
        sample, denoiser_input = first_sample(self.run_plan.sampler, latents, image_latents)
        self.state |= {"sample": sample, "denoiser_input": denoiser_input}

    def advance(self) -> None:
        """Note that the row has what an evaluation made."""
        evaluation = self.run_plan.step_plan.evaluations[self.step]
        self.kept |= _CARRIED.union(evaluation.writes)
        self.left[evaluation.phase] -= 1
        self.step += 1

    def end(self, result: np.ndarray) -> None:
        """Note the result, and let go of everything else."""
        self.result = result
        self.state = {}
        self.kept.clear()

    def loop_row(self, name: str, step: int) -> np.ndarray:
        """Return what the loop gives an evaluation, by a name in `LOOP`."""
        sampler = self.run_plan.sampler
        if name == "timestep":
            return sampler.timesteps[step, ...]
        if name == "weights":
            return sampler.weights[step]
        if not sampler.draws_noise:
            return _zeros(self.shape)
        at = self.request.noise_offset + step + 1
        return standard_normal(self.shape, self.request.seed, self.index, at)


def vae_picture(manifest: Manifest, request: Request, index: int) -> np.ndarray | None:
    """Return what the VAE encodes for one of a request's images [H, W, 3] f32, if anything.

    It is what the run begins with, or the image of a video with noise on it.
    """
    if not request.encodes_image and manifest.takes_prompt:
        return None
    if "vae_encoder" not in manifest.graphs:
        return None  # refused by name; see `rebuild`
    (tensor,) = manifest.graph("vae_encoder").inputs
    assert isinstance(tensor.origin, FromImage)  # the manifest was checked
    pixels = request.pictures[tensor.origin.image][index]
    if tensor.origin.noise is None:
        return pixels
    # The graph maps [0, 1] to [-1, 1], where the noise has this deviation.
    deviation = np.float32(request.values[tensor.origin.noise][index]) / 2
    noise = standard_normal((3, *pixels.shape[:2]), request.seed, index, IMAGE_NOISE)
    return pixels + deviation * noise.transpose(1, 2, 0)


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


def _split(
    manifest: Manifest, prompts: Prompts, index: int, prefix: str = ""
) -> tuple[dict[str, str | dict[str, np.ndarray]], State]:
    """Return what of an image's prompt is to be encoded, and what the call brings encoded."""
    if not isinstance(prompts, dict):
        return {prefix: prompts[index]}, {}
    rows = {name: value[index] for name, value in prompts.items()}
    if needs_encoding(manifest, rows):
        return {prefix: rows}, {}
    return {}, {prefix + name: row for name, row in rows.items()}


@lru_cache(8)
def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Return zeros, the same ones each time: a batch that has them copies none."""
    zeros = np.zeros(shape, np.float32)
    zeros.flags.writeable = False
    return zeros
