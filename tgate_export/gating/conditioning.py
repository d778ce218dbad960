"""What a denoiser is told besides the noisy sample and the time (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tgate_export.bundle.manifest import HostInput

if TYPE_CHECKING:
    import torch

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
    """All conditions of a denoiser, and how it is called with them."""

    conditions: tuple[Condition, ...]
    predict: Predict

    @property
    def text(self) -> tuple[Condition, ...]:
        """Those that the text encoder makes, in the order of its outputs."""
        return tuple(entry for entry in self.conditions if entry.host is None)

    @property
    def gated(self) -> tuple[Condition, ...]:
        """Those that the gated phase takes."""
        return tuple(entry for entry in self.conditions if entry.gated)
