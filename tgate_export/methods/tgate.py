"""T-GATE (arXiv 2404.02747): no guidance and no cross-attention after the gate step (no torch).

It splits a run in two. Evaluations before the gate run `full`: cross-attention and classifier-free
guidance computed. Evaluations from the gate on run `gated`: the cross-attention outputs of the last
`full` evaluation are reused, and guidance is dropped. At a gate of the number of steps or more
nothing is gated, which is the baseline.

With classifier-free guidance there are `u` and `c`, a layer's outputs of the unconditional and of
the conditional pass, and `d`, the conditional prediction less the unconditional one, at the last
`full` evaluation. What is cached is `(1 - cache_blend) * u + cache_blend * c`, and the prediction
of `gated` is that of the denoiser plus `guidance_carry * (guidance_scale - cache_blend) * d`. The
official method is a blend of 0.5, the mean, and carries nothing. To first order the denoiser gives
`eps_u + cache_blend * d`, so that a carry of 1 makes up for all of the guidance that is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgate_export.methods.conditioning import GUIDANCE_SCALE
from tgate_export.methods.method import CacheKind, Method, Phase, PhaseTensors
from tgate_export.steps.rule import Comparison, Guard

if TYPE_CHECKING:
    from torch import nn

    from tgate_export.methods.conditioning import Conditioning


def make_module(
    denoiser: nn.Module,
    conditioning: Conditioning,
    phase: Phase,
    tensors: PhaseTensors,
) -> nn.Module:
    """Make the module of a phase that caches attention outputs."""
    from tgate_export.methods.phases import FullPhase, GatedPhase

    return (FullPhase if phase.guided else GatedPhase)(denoiser, conditioning, tensors)


CACHE_BLEND, GUIDANCE_CARRY = "cache_blend", "guidance_carry"
CARRIED = (GUIDANCE_SCALE, CACHE_BLEND, GUIDANCE_CARRY)  # what a gated phase takes for guidance
GATED = Comparison(op=">=", parameter="gate_step")

METHOD = Method(
    name="tgate",
    module="methods.tgate",
    caches={
        "cross_cache": CacheKind("cross-attention"),
        "guidance_delta": CacheKind("guidance"),
    },
    phases={
        "full": Phase(
            guided=True, writes=("cross_cache", "guidance_delta"), numbers=(CACHE_BLEND,)
        ),
        "gated": Phase(guided=False, reads=("cross_cache", "guidance_delta"), numbers=CARRIED),
    },
    parameters=("gate_step",),
    rule=(Guard(phase="gated", all=(GATED,)), Guard(phase="full", all=())),
    make_module=make_module,
    numbers=(CACHE_BLEND, GUIDANCE_CARRY),
)
