"""The gated run in PyTorch with diffusers' own scheduler: what a bundle's run must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from tgate_export.bundle.manifest import Manifest
from tgate_export.export.solver_tables import SOLVERS
from tgate_export.families.loading import Components, computing_in_fp32
from tgate_export.families.source import ModelSource
from tgate_export.gating.cross_attention import CacheGroup
from tgate_export.gating.phases import FullPhase, GatedPhase
from tgate_export.runtime.conditioning import ImageSize, host_input
from tgate_export.runtime.noise import standard_normal

# Above this many denoiser weights a trajectory is a few steps long, not the whole run.
LARGE_DENOISER = 100_000_000
PROMPT, NEGATIVE_PROMPT = "a red circle on a blue background", "a green square"


@dataclass(frozen=True)
class TrajectoryCase:
    """One run to compare: scheduler, steps and gate step."""

    scheduler: str
    steps: int
    gate_step: int

    def __str__(self) -> str:
        gated = "no gate" if self.gate_step >= self.steps else f"gate {self.gate_step}"
        return f"{self.scheduler}, {gated} of {self.steps}"


@dataclass(frozen=True)
class Trajectory:
    """A case with its starting latents and PyTorch's final ones [1, C, h, w]."""

    case: TrajectoryCase
    latents: np.ndarray
    expected: np.ndarray


def trajectory_cases(manifest: Manifest) -> tuple[TrajectoryCase, ...]:
    """Choose the runs to compare: four schedulers and four gates, or one short run if large."""
    if manifest.graph("full").parameters > LARGE_DENOISER:
        return (TrajectoryCase(manifest.defaults.scheduler, 4, 2),)
    steps = manifest.defaults.num_inference_steps
    gates = sorted({1, max(1, steps // 5), manifest.defaults.gate_step, steps})
    schedulers = [name for name in ("ddim", "euler", "dpm++2m", "pndm") if name in manifest.solvers]
    return tuple(TrajectoryCase(name, steps, gate) for name in schedulers for gate in gates)


@torch.no_grad()
def trajectories(
    source: ModelSource,
    parts: Components,
    groups: tuple[CacheGroup, ...],
    manifest: Manifest,
    cases: Iterable[TrajectoryCase],
) -> tuple[Trajectory, ...]:
    """Run every case in PyTorch in fp32."""
    denoiser, conditioning = parts[source.family.denoiser], source.family.conditioning(source)
    values = _conditions(source, parts, manifest)
    full_inputs = [values[name] for entry in conditioning.conditions for name in entry.full_inputs]
    full_inputs.append(torch.tensor([manifest.defaults.guidance_scale]))
    gated_inputs = [values[entry.gated_input] for entry in conditioning.gated]
    full = FullPhase(denoiser, groups, conditioning)
    gated = GatedPhase(denoiser, groups, conditioning)
    downscale = manifest.latents.downscale
    shape = (
        manifest.latents.channels,
        manifest.size.height.opt // downscale,
        manifest.size.width.opt // downscale,
    )
    found = []
    for index, case in enumerate(cases):
        latents = standard_normal(shape, seed=index)[None]
        with computing_in_fp32(full, gated):
            expected = _run(
                case,
                parts.scheduler_config,
                lambda sample, time: full(sample, time, *full_inputs),
                lambda sample, time, caches: gated(sample, time, *gated_inputs, *caches),
                latents,
            )
        found.append(Trajectory(case, latents, expected))
    return tuple(found)


def _conditions(
    source: ModelSource, parts: Components, manifest: Manifest
) -> dict[str, torch.Tensor]:
    """Return every condition of `PROMPT` and `NEGATIVE_PROMPT` by graph input, [1, ...]."""
    height, width = manifest.size.height.opt, manifest.size.width.opt
    values = {
        name: torch.from_numpy(host_input(kind, 1, ImageSize.of(height, width)))
        for name, kind in manifest.conditioning.items()
    }
    encoder = source.family.text_encoder(parts)
    text = source.family.conditioning(source).text
    for prefix, prompt in (("", PROMPT), ("negative_", NEGATIVE_PROMPT)):
        inputs = []
        for spec in source.family.tokenizers(source):
            encoded = parts.tokenizers[spec.input](
                [prompt], padding="max_length", max_length=spec.max_length, truncation=True,
                return_attention_mask=True, return_tensors="pt",
            )  # fmt: skip
            inputs += [encoded.input_ids, *([encoded.attention_mask] if spec.mask else [])]
        with computing_in_fp32(encoder):
            outputs = encoder(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for entry, value in zip(text, outputs, strict=True):
            values[prefix + entry.name] = value.float()
    return values


def _run(
    case: TrajectoryCase,
    scheduler_config: dict[str, Any],
    full: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    gated: Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor],
    latents: np.ndarray,
) -> np.ndarray:
    spec = SOLVERS[case.scheduler]
    scheduler = getattr(diffusers, spec.scheduler_class).from_config(
        scheduler_config, **spec.overrides
    )
    scheduler.set_timesteps(case.steps)
    # PNDM evaluates once more than asked for; steps are counted from after it.
    extra = len(scheduler.timesteps) - case.steps * scheduler.order
    sample = torch.from_numpy(latents) * scheduler.init_noise_sigma
    caches: tuple[torch.Tensor, ...] = ()
    for index, timestep in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(sample, timestep)
        time = timestep[None].float()
        if index - extra < case.gate_step:
            noise_pred, *rest = full(scaled, time)
            caches = tuple(rest)
        else:
            noise_pred = gated(scaled, time, caches)
        sample = scheduler.step(noise_pred, timestep, sample, return_dict=False)[0]
    result: np.ndarray = sample.numpy()
    return result
