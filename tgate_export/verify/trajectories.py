"""Whole runs of the runtime, across the gate, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import Backend
from tgate_export.runtime.pipeline import TGatePipeline
from tgate_export.verify.differences import (
    PNDM_BOUND_BF16,
    TRAJECTORY_BOUNDS,
    Computed,
    Difference,
    compare,
    computed_in,
)
from tgate_export.verify.reference import Trajectory, TrajectoryCase


def check_trajectories(
    bundle: Bundle, runs: Iterable[Trajectory], backend: Backend | None = None
) -> tuple[Difference, ...]:
    """Compare final latents of the torch-free runtime with PyTorch's."""
    backend = backend or select("onnxruntime:cpu", bundle)
    pipeline = TGatePipeline(bundle, backend)
    computed = computed_in(backend, bundle.manifest.precision)
    copies = bundle.manifest.batch.min  # as few as a call can make
    differences = []
    for run in runs:
        output = pipeline(
            num_images_per_prompt=copies,
            num_inference_steps=run.case.steps,
            scheduler=run.case.scheduler,
            latents=np.concatenate([run.latents] * copies),
            output_type="latent",
            **run.call,
            parameters=run.parameters
            | dict(run.case.settings)
            | run.case.rule_values(bundle.manifest),
        )
        latents = np.asarray(output.images)
        expected = np.concatenate([run.expected] * copies)
        bound = trajectory_bound(run.case, computed)
        differences.append(compare(str(run.case), "latents", latents, expected, bound))
    return tuple(differences)


def trajectory_bound(case: TrajectoryCase, computed: Computed) -> float:
    """Return the largest relative difference allowed of a run's final latents."""
    if computed == "bf16" and case.scheduler == "pndm" and case.ungated:
        return PNDM_BOUND_BF16
    return TRAJECTORY_BOUNDS[computed]
