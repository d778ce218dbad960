"""What a denoiser is told besides the noisy sample and the time (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tgate_export.bundle.manifest import Guidance
from tgate_export.bundle.origins import FromFormula, FromGraph, FromImage, FromParameter

if TYPE_CHECKING:
    import torch

GUIDANCE_SCALE = "guidance_scale"
GUIDANCE_RESCALE = "guidance_rescale"

# What the unconditional pass of guidance gets of a condition: the same as the conditional one, an
# input of its own (`negative_<name>`), or zeros.
Unconditional = Literal["same", "negative", "zeros"]

# (denoiser, sample [B, C, h, w], timestep [B], conditions by name) -> noise_pred [B, C, h, w].
# Called with either half of guidance or both; in the gated phase only with `gated` conditions.
Predict = Callable[[Any, "torch.Tensor", "torch.Tensor", Mapping[str, "torch.Tensor"]], Any]


@dataclass(frozen=True)
class Condition:
    """One tensor that a denoiser takes besides the sample and the time.

    Attributes:
        name: graph input; also the encoder's output, where it is one.
        shape: without the batch; a name stands for a side of the latents.
        unconditional: what the unconditional half gets.
        gated: the gated phase needs it, too: as the official code, its negative value if it has
            one.
        origin: where it comes from, f32; None: from the prompt encoder, in the bundle's precision.
        chunks: of one by token [T, D]: the denoiser reads those of so many runs of the encoder, one
            after another [chunks * T, D].
        negative_origin: where its negative value comes from, if not from there.
    """

    name: str
    shape: tuple[int | str, ...]
    unconditional: Unconditional = "same"
    gated: bool = False
    origin: FromFormula | FromParameter | FromImage | FromGraph | None = None
    negative_origin: FromFormula | None = None
    chunks: int | None = None

    @property
    def input_shape(self) -> tuple[int | str, ...]:
        """What the denoiser reads, without the batch."""
        if self.chunks is None or not isinstance(tokens := self.shape[0], int):
            return self.shape
        return (self.chunks * tokens, *self.shape[1:])

    @property
    def full_inputs(self) -> tuple[str, ...]:
        """Names of the full graph's inputs."""
        negative = (f"negative_{self.name}",) if self.unconditional == "negative" else ()
        return (self.name, *negative)

    @property
    def gated_input(self) -> str:
        """Name of the gated graph's input."""
        return self.full_inputs[-1]


@dataclass(frozen=True)
class Conditioning:
    """All conditions of a denoiser, and how it is called with them.

    Attributes:
        conditions: in the order of the graphs' inputs.
        predict: calls the denoiser.
        float32_attention: `predict` computes attention products in fp32.
        guidance: what guides the full phase.
        rescale: classifier-free guidance can be rescaled, by the input `guidance_rescale` [B].
        frames: of a video: the sample is [B, frames * C, h, w], and every frame has a guidance
            scale of its own, [B, frames]. None for images.
        single_token: the condition [B, 1, D] that is all that cross-attention reads, if so. The
            softmax over one token is 1: attention is a linear map of it, the same for all queries.
    """

    conditions: tuple[Condition, ...]
    predict: Predict
    float32_attention: bool = False
    guidance: Guidance = "classifier-free"
    rescale: bool = False
    frames: int | None = None
    single_token: str | None = None

    def guided_by(self, guidance: Guidance) -> Conditioning:
        """Return this conditioning for another kind of guidance.

        Without the second pass of classifier-free guidance nothing is negative. With an embedding,
        `predict` gets the condition `guidance_scale` [B] in every phase.
        """
        if guidance == "classifier-free":
            return self
        conditions = tuple(replace(entry, unconditional="same") for entry in self.conditions)
        return replace(self, conditions=conditions, guidance=guidance, rescale=False)

    def in_chunks(self, chunks: int) -> Conditioning:
        """Return this conditioning for prompts of so many chunks."""
        conditions = tuple(
            entry if entry.chunks is None else replace(entry, chunks=chunks)
            for entry in self.conditions
        )
        return replace(self, conditions=conditions)

    @property
    def passes(self) -> int:
        """How often the full phase runs the denoiser: unconditional and conditional, or once."""
        return 2 if self.guidance == "classifier-free" else 1

    @property
    def full_inputs(self) -> tuple[str, ...]:
        """Names of what the full phase takes after the sample and the time, before the caches."""
        names = [name for entry in self.conditions for name in entry.full_inputs]
        guided = [] if self.guidance == "none" else [GUIDANCE_SCALE]
        return (*names, *guided, *([GUIDANCE_RESCALE] if self.rescale else []))

    @property
    def gated_inputs(self) -> tuple[str, ...]:
        """Names of what the gated phase takes after the sample and the time, before the caches."""
        names = [entry.gated_input for entry in self.gated]
        return (*names, *([GUIDANCE_SCALE] if self.guidance == "embedded" else []))

    @property
    def prompt(self) -> tuple[Condition, ...]:
        """Those that the prompt encoder makes, in the order of its outputs."""
        return tuple(entry for entry in self.conditions if entry.origin is None)

    @property
    def gated(self) -> tuple[Condition, ...]:
        """Those that the gated phase takes."""
        return tuple(entry for entry in self.conditions if entry.gated)
