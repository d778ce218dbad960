"""What a method is: its phases and their caches, its parameters, and its rule (no torch).

A method is a file of this folder with a `METHOD`; `tgate_export/methods/tgate.py` is the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tgate_export.bundle import manifest_graphs
from tgate_export.steps.rule import Guard
from tgate_export.steps.step_plan import PhaseCaches, StepPlan, plan_steps

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.methods.conditioning import Conditioning
    from tgate_export.methods.denoiser_phases import CacheTensor

Of = Literal["cross-attention", "self-attention", "guidance"]


@dataclass(frozen=True)
class CacheKind:
    """A kind of cache.

    Attributes:
        of: the layers whose outputs it holds; or guidance, of which it holds the conditional
            prediction less the unconditional one, and which is there with classifier-free guidance
            alone.
        passes: it holds those of every guidance pass, and not one for all.
    """

    of: Of
    passes: bool = False


@dataclass(frozen=True)
class Phase:
    """A graph of the denoiser that some steps run.

    Attributes:
        guided: guidance is computed: it takes the conditions of every pass. If not, it takes the
            `gated` ones.
        reads: kinds of the caches that it takes, in the order of its tensors.
        writes: kinds of those that it gives, in the order of its tensors.
        numbers: parameters that it takes besides, with classifier-free guidance.
        interval: no step runs it unless this parameter is above 1, so that a bundle needs the
            graph only then; None: every bundle has it.
    """

    guided: bool
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    interval: str | None = None


@dataclass(frozen=True)
class PhaseTensors:
    """What a phase takes and gives besides the sample, the time and the noise prediction.

    Attributes:
        inputs: names of conditions and parameters, in order.
        reads: the caches that follow them.
        writes: the caches that it gives.
    """

    inputs: tuple[str, ...]
    reads: tuple[CacheTensor, ...]
    writes: tuple[CacheTensor, ...]


# (denoiser, its conditioning, the phase, its tensors) -> what is exported. It takes the sample
# [B, C, h, w], the timestep [B] and these tensors, and returns the noise prediction [B, C, h, w]
# and the caches.
MakeModule = Callable[["nn.Module", "Conditioning", Phase, PhaseTensors], "nn.Module"]


@dataclass(frozen=True)
class Method:
    """A way to reuse computation over the steps of a run.

    Attributes:
        name: in a bundle's manifest.
        module: the Python module that it begins with, as `code_sha256` takes it: what its graphs
            depend on.
        caches: kinds of caches, in the order of the tensors.
        phases: by the graph's name, in the order of the graphs.
        parameters: those that the rule reads.
        numbers: those that phases take, besides what guides; with classifier-free guidance alone.
        rule: which phase a step runs; data, which a bundle carries.
        make_module: makes a phase's module, in PyTorch.
        at_least: parameters that are at least as large as another one.
    """

    name: str
    module: str
    caches: Mapping[str, CacheKind]
    phases: Mapping[str, Phase]
    parameters: tuple[str, ...]
    rule: tuple[Guard, ...]
    make_module: MakeModule
    numbers: tuple[str, ...] = ()
    at_least: Mapping[str, str] = field(default_factory=dict)

    def phases_for(self, values: Mapping[str, float]) -> tuple[str, ...]:
        """Return the phases that a bundle has which is built with these parameters."""
        return tuple(
            name
            for name, phase in self.phases.items()
            if phase.interval is None or values[phase.interval] > 1
        )

    def caches_for(self, phases: Iterable[str]) -> tuple[str, ...]:
        """Return the kinds of caches that these phases read."""
        read = {kind for name in phases for kind in self.phases[name].reads}
        return tuple(kind for kind in self.caches if kind in read)

    def plan(self, values: Mapping[str, int], step_of_evaluation: Sequence[int]) -> StepPlan:
        """Plan one run, by kinds of caches.

        Args:
            values: of the rule's parameters.
            step_of_evaluation: see `plan_steps`.

        Raises:
            ValueError: no steps.
        """
        caches = {
            name: PhaseCaches(phase.reads, phase.writes) for name, phase in self.phases.items()
        }
        return plan_steps(self.rule, caches, values, step_of_evaluation)

    def described(self) -> manifest_graphs.Method:
        """Return what a bundle's manifest says of it."""
        return manifest_graphs.Method(
            parameters=self.parameters, at_least=dict(self.at_least), rule=self.rule
        )
