"""What a denoiser is told besides the noisy sample and the time (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import Guidance, HostInput

if TYPE_CHECKING:
    import torch

GUIDANCE_SCALE = "guidance_scale"
GUIDANCE_RESCALE = "guidance_rescale"

# (denoiser, sample [B, C, h, w], timestep [B], conditions by name) -> noise_pred [B, C, h, w].
# Called with either half of guidance or both; in the gated phase only with `gated` conditions.
Predict = Callable[[Any, "torch.Tensor", "torch.Tensor", Mapping[str, "torch.Tensor"]], Any]


@dataclass(frozen=True)
class Condition:
    """One tensor that a denoiser takes besides the sample and the time.

    Attributes:
        name: graph input; also the text encoder's output, unless the host computes it.
        shape: without the batch.
        negative: the unconditional half has a value of its own, the input `negative_<name>`.
        gated: the gated phase needs it, too: its unconditional value, as the official code.
        host: how the host computes it (f32); None for an output of the text encoder, which has
            the bundle's precision.
    """

    name: str
    shape: tuple[int, ...]
    negative: bool = False
    gated: bool = False
    host: HostInput | None = None

    @property
    def full_inputs(self) -> tuple[str, ...]:
        """Names of the full graph's inputs."""
        return (self.name, f"negative_{self.name}") if self.negative else (self.name,)

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
    """

    conditions: tuple[Condition, ...]
    predict: Predict
    float32_attention: bool = False
    guidance: Guidance = "classifier-free"
    rescale: bool = False

    def guided_by(self, guidance: Guidance) -> Conditioning:
        """Return this conditioning for another kind of guidance.

        Without the second pass of classifier-free guidance nothing is negative. With an embedding,
        `predict` gets the condition `guidance_scale` [B] in every phase.
        """
        if guidance == "classifier-free":
            return self
        conditions = tuple(replace(entry, negative=False) for entry in self.conditions)
        return replace(self, conditions=conditions, guidance=guidance, rescale=False)

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
        """The same for the gated phase."""
        names = [entry.gated_input for entry in self.gated]
        return (*names, *([GUIDANCE_SCALE] if self.guidance == "embedded" else []))

    @property
    def text(self) -> tuple[Condition, ...]:
        """Those that the text encoder makes, in the order of its outputs."""
        return tuple(entry for entry in self.conditions if entry.host is None)

    @property
    def gated(self) -> tuple[Condition, ...]:
        """Those that the gated phase takes."""
        return tuple(entry for entry in self.conditions if entry.gated)
