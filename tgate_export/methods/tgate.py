"""T-GATE (arXiv 2404.02747): no guidance and no cross-attention after the gate step (no torch).

It splits a run in two. Evaluations before the gate run `full`: cross-attention and classifier-free
guidance computed. Evaluations from the gate on run `gated`: the cross-attention outputs of the last
`full` evaluation are reused, and guidance is dropped. At a gate of the number of steps or more
nothing is gated, which is the baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tgate_export.methods.method import CacheKind, Method, Phase
from tgate_export.steps.rule import Comparison, Guard

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.methods.conditioning import Conditioning
    from tgate_export.methods.cross_attention import CacheGroup


def make_module(
    denoiser: nn.Module,
    conditioning: Conditioning,
    phase: Phase,
    reads: Sequence[CacheGroup],
    writes: Sequence[CacheGroup],
) -> nn.Module:
    """Make the module of a phase that caches attention outputs."""
    from tgate_export.methods.phases import FullPhase, GatedPhase

    return (FullPhase if phase.guided else GatedPhase)(denoiser, conditioning, reads, writes)


GATED = Comparison(op=">=", parameter="gate_step")

METHOD = Method(
    name="tgate",
    module="methods.tgate",
    caches={"cross_cache": CacheKind("cross-attention")},
    phases={
        "full": Phase(guided=True, writes=("cross_cache",)),
        "gated": Phase(guided=False, reads=("cross_cache",)),
    },
    parameters=("gate_step",),
    rule=(Guard(phase="gated", all=(GATED,)), Guard(phase="full", all=())),
    make_module=make_module,
)
