"""T-GATE's second version: self-attention is reused as well, in between (no torch).

Its outputs are reused between the steps that compute them: before the gate with `full_reuse`, from
the gate on with `gated_reuse`. Exactly the steps of the official `tgate_scheduler`. With intervals
of 1 nothing of that happens, and the method is `tgate_export/methods/tgate.py`: so every bundle is
built for this one. `cache_blend` is for the outputs that are reused from the gate on; before it
both passes are kept as they are.
"""

from __future__ import annotations

from dataclasses import replace

from tgate_export.methods import tgate
from tgate_export.methods.method import CacheKind, Phase
from tgate_export.steps.rule import Comparison, Guard

_gated, _full = tgate.METHOD.rule

METHOD = replace(
    tgate.METHOD,
    module="methods.tgate_v2",
    caches={
        "cross_cache": tgate.METHOD.caches["cross_cache"],
        "self_passes": CacheKind("self-attention", passes=True),  # read before the gate
        "self_cache": CacheKind("self-attention"),  # and from it on
        "guidance_delta": tgate.METHOD.caches["guidance_delta"],
    },
    phases={
        "full": replace(
            tgate.METHOD.phases["full"],
            writes=("cross_cache", "self_passes", "self_cache", "guidance_delta"),
        ),
        "full_reuse": Phase(guided=True, reads=("self_passes",), interval="sp_interval"),
        "gated": replace(tgate.METHOD.phases["gated"], writes=("self_cache",)),
        "gated_reuse": replace(
            tgate.METHOD.phases["gated"],
            reads=("cross_cache", "self_cache", "guidance_delta"),
            interval="fi_interval",
        ),
    },
    parameters=(*tgate.METHOD.parameters, "sp_interval", "fi_interval", "warm_up"),
    at_least={"gate_step": "warm_up"},  # the gate is not before the end of warm-up
    rule=(
        Guard(
            phase="gated_reuse",
            all=(tgate.GATED, Comparison(modulo="fi_interval", op="!=", constant=0)),
        ),
        _gated,
        Guard(
            phase="full_reuse",
            all=(
                Comparison(op=">", parameter="warm_up"),
                # Step gate_step - 1 writes what the gated steps read, so it always computes.
                Comparison(op="<", parameter="gate_step", constant=-1),
                Comparison(modulo="sp_interval", op="!=", constant=0),
            ),
        ),
        _full,
    ),
)
