"""The binding plan of one call for several images, each at a step of its own. Pure."""

from __future__ import annotations

from functools import partial

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.plan import BindingPlan, RunShape, Slot, bind_launch, run_buffers
from tgate_export.steps.step_plan import StepPlan


def plan_calls(manifest: Manifest, batch: int, height: int, width: int) -> BindingPlan:
    """Decide the memory and the launches of every call that a batch of images can need.

    `steps` has one entry for each of the bundle's phases instead of one for each evaluation: the
    images in a call may be at any step. Nothing has a row for every evaluation, and the sampler
    always reads `sample.0` and `history.0` and writes `sample.1` and `history.1`, because images
    come and go between calls.

    Raises:
        BundleError: when a graph has a tensor that no buffer fits.
    """
    with_image = "vae_encoder" in manifest.graphs
    shape = RunShape(batch, height, width, StepPlan((), 0), noise=True, image=with_image)
    buffers = run_buffers(manifest, shape, manifest.phases, evaluations=None)
    bind = partial(bind_launch, manifest, buffers)
    sampler = bind(
        "sampler",
        {"sample": Slot("sample.0"), "history": Slot("history.0")},
        {"next_sample": Slot("sample.1"), "next_history": Slot("history.1")},
    )
    latents = Slot("sample.0")
    return BindingPlan(
        buffers=buffers,
        encode=(bind(manifest.prompt_encoder),),
        encode_image=bind("vae_encoder") if with_image else None,
        steps=tuple(
            (bind(phase, {"sample": Slot("denoiser_input")}), sampler) for phase in manifest.phases
        ),
        decode=bind("vae_decoder", {"latents": latents}),
        latents=latents,
    )
