"""The gated run in PyTorch with diffusers' own scheduler: what a bundle's run must equal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromFormula, FromImage, FromParameter
from tgate_export.families.loading import Components, computing_in_fp32, convert
from tgate_export.families.modules import VaeEncoder
from tgate_export.families.source import ModelSource
from tgate_export.methods.conditioning import Conditioning
from tgate_export.methods.cross_attention import CacheGroup
from tgate_export.methods.phases import FullPhase, GatedPhase, make_phase, phases
from tgate_export.runtime.formulas import formula_row
from tgate_export.runtime.guidance import by_prompt_alone, effective_scale
from tgate_export.runtime.noise import standard_normal
from tgate_export.samplers.specs import sampler_spec
from tgate_export.steps.tgate import tgate_plan

# Above this many denoiser weights a trajectory is a few steps long, not the whole run.
LARGE_DENOISER = 100_000_000
# Of a video: the noise on the image is the runtime's own.
NO_NOISE = {"noise_aug_strength": 0.0}
PROMPT, NEGATIVE_PROMPT = "a red circle on a blue background", "a green square"


@dataclass(frozen=True)
class TrajectoryCase:
    """One run to compare: sampler, steps and step plan."""

    scheduler: str
    steps: int
    gate_step: int
    sp_interval: int = 1
    fi_interval: int = 1
    warm_up: int = 0

    def __str__(self) -> str:
        gated = "no gate" if self.gate_step >= self.steps else f"gate {self.gate_step}"
        reused = f", sp {self.sp_interval}, fi {self.fi_interval}, warm-up {self.warm_up}"
        intervals = "" if self.sp_interval == self.fi_interval == 1 else reused
        return f"{self.scheduler}, {gated} of {self.steps}{intervals}"


@dataclass(frozen=True)
class Trajectory:
    """A case with its starting latents and PyTorch's final ones [1, C, h, w].

    `call` is what `TGatePipeline` is asked for.
    """

    case: TrajectoryCase
    call: Mapping[str, Any]
    latents: np.ndarray
    expected: np.ndarray


def trajectory_cases(manifest: Manifest) -> tuple[TrajectoryCase, ...]:
    """Choose the runs to compare: four schedulers and four gates, or one short run if large."""
    # The shortest intervals: they take turns at every graph that the bundle has.
    intervals = {
        "sp_interval": 2 if "full_reuse" in manifest.graphs else 1,
        "fi_interval": 2 if "gated_reuse" in manifest.graphs else 1,
    }
    reuses = max(intervals.values()) > 1
    # One that draws noise cannot be compared.
    steady = [name for name in manifest.samplers if name not in ("lcm", "euler-a")]
    if manifest.graph("full").parameters > LARGE_DENOISER:
        steps, gate = (6, 3) if reuses else (4, 2)
        default = manifest.defaults.scheduler
        first = [name for name in (default, "ddim") if name in steady]
        return tuple(
            TrajectoryCase(name, steps, gate, **intervals) for name in (first or steady)[:1]
        )
    steps = manifest.defaults.num_inference_steps
    gates = sorted({1, max(1, steps // 5), manifest.defaults.gate_step, steps})
    usual = ("ddim", "euler", "dpm++2m", "pndm")
    schedulers = [name for name in steady if name in usual] or steady[:1]
    cases = [TrajectoryCase(name, steps, gate) for name in schedulers for gate in gates]
    if reuses:
        gate = max(2, steps // 2)
        cases += [TrajectoryCase(name, steps, gate, **intervals) for name in schedulers]
    return tuple(cases)


@torch.no_grad()
def trajectories(
    source: ModelSource,
    parts: Components,
    groups: tuple[CacheGroup, ...],
    manifest: Manifest,
    cases: Iterable[TrajectoryCase],
) -> tuple[Trajectory, ...]:
    """Run every case in PyTorch in fp32."""
    denoiser, conditioning = parts[source.family.denoiser], source.conditioning()
    frames, guidance_scale = manifest.latents.frames, manifest.defaults.guidance_scale
    conditions = _text_conditions if manifest.takes_prompt else _image_conditions
    values, call = conditions(source, parts, manifest)
    values["guidance_scale"] = torch.tensor([effective_scale(manifest, guidance_scale)])
    if by_prompt_alone(manifest, guidance_scale):
        values |= {f"negative_{entry.name}": values[entry.name] for entry in conditioning.prompt}
    if frames is not None:
        values["guidance_scale"] = torch.linspace(1.0, guidance_scale, frames)[None]
    values["guidance_rescale"] = torch.zeros(1)
    own, pictures = _own_conditions(manifest, values.keys())
    values, call = values | own, call | pictures
    graphs = _Graphs(denoiser, groups, conditioning, values)
    _, *shape = manifest.latents.shape(1, manifest.size.height.opt, manifest.size.width.opt)
    found = []
    for index, case in enumerate(cases):
        latents = standard_normal(tuple(shape), seed=index)[None]
        with computing_in_fp32(*graphs.modules):
            expected = _run(case, source.config("scheduler"), graphs, latents)
        latents = latents.reshape(manifest.latents.unfolded(latents.shape))
        expected = expected.reshape(latents.shape)
        found.append(Trajectory(case, call, latents, expected))
    return tuple(found)


# (conditions by graph input [1, ...], what the runtime is asked for)
Conditions = tuple[dict[str, torch.Tensor], dict[str, Any]]


def _own_conditions(manifest: Manifest, known: Collection[str]) -> Conditions:
    """Return the parameters and pictures that the denoiser takes besides what is known."""
    values: dict[str, torch.Tensor] = {}
    pictures: dict[str, np.ndarray] = {}
    for tensor in manifest.graph("full").inputs:
        origin = tensor.origin
        if tensor.name in known:
            continue
        if isinstance(origin, FromParameter):
            values[tensor.name] = torch.tensor([manifest.parameters[origin.parameter].default])
        elif isinstance(origin, FromImage):
            image = _smooth_image(manifest)
            low, high = origin.range
            values[tensor.name] = torch.from_numpy(image * (high - low) + low)[None]
            pictures[origin.image] = image
    return values, {"parameters": pictures}


def _smooth_image(manifest: Manifest) -> np.ndarray:
    """Return an image [H, W, 3] f32; one of noise alone would not be told apart from another."""
    rows = np.linspace(0, 1, manifest.size.height.opt)
    columns = np.linspace(0, 1, manifest.size.width.opt)
    planes = [np.add.outer(rows, columns) / 2, *np.meshgrid(columns, rows)]
    return np.stack(planes, axis=-1).astype(np.float32)


def _host_conditions(manifest: Manifest) -> dict[str, torch.Tensor]:
    """Return what the host computes for the denoiser, with the parameters' defaults."""
    values = {name: entry.default for name, entry in manifest.parameters.items()} | NO_NOISE
    return {
        tensor.name: torch.from_numpy(
            formula_row(
                tensor.origin.formula, values,
                height=manifest.size.height.opt, width=manifest.size.width.opt,
                frames=manifest.latents.frames,
            )
        )[None]
        for tensor in manifest.graph("full").inputs
        if isinstance(tensor.origin, FromFormula)
    }  # fmt: skip


def _image_conditions(source: ModelSource, parts: Components, manifest: Manifest) -> Conditions:
    """Return the conditions of a video."""
    image = _smooth_image(manifest)
    pixels = torch.from_numpy(image)[None]
    # They read the types of their own weights, see `computing_in_fp32`.
    for component in ("image_encoder", "vae"):
        convert(parts[component], torch.float32)
    embeds = source.family.prompt_encoder(source, parts, manifest.size)(pixels)
    image_latents = VaeEncoder(parts["vae"], scaled=False)(pixels)
    (prompt,) = source.conditioning().prompt
    values = {prompt.name: embeds, "image_latents": image_latents}
    call = {
        "image": image,
        "prompt_embeds": embeds.numpy(),
        **NO_NOISE,
    }
    return values | _host_conditions(manifest), call


def _text_conditions(source: ModelSource, parts: Components, manifest: Manifest) -> Conditions:
    """Return the conditions of `PROMPT`, and of `NEGATIVE_PROMPT` for guidance."""
    values = _host_conditions(manifest)
    encoder = source.family.prompt_encoder(source, parts, manifest.size)
    text = source.conditioning().prompt
    for prefix, prompt in (("", PROMPT), ("negative_", NEGATIVE_PROMPT)):
        inputs = []
        for spec in source.family.tokenizers(source):
            encoded = parts.tokenizers[spec.input](
                [prompt], padding="max_length", max_length=spec.max_length, truncation=True,
                return_attention_mask=True, return_tensors="pt",
            )  # fmt: skip
            inputs += [encoded.input_ids, *([encoded.attention_mask] if spec.mask else [])]
        if "clip_skip" in manifest.parameters:
            inputs.append(torch.zeros(1, dtype=torch.int64))
        with computing_in_fp32(encoder):
            outputs = encoder(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for entry, value in zip(text, outputs, strict=True):
            values[prefix + entry.name] = value.float()
    negative = {"negative_prompt": NEGATIVE_PROMPT} if manifest.takes_negative else {}
    return values, {"prompt": PROMPT, **negative}


class _Graphs:
    """Every phase of a denoiser, and the caches that they hand on."""

    def __init__(
        self,
        denoiser: torch.nn.Module,
        groups: tuple[CacheGroup, ...],
        conditioning: Conditioning,
        values: Mapping[str, torch.Tensor],
    ) -> None:
        self._full_inputs = [values[name] for name in conditioning.full_inputs]
        self._gated_inputs = [values[name] for name in conditioning.gated_inputs]
        self._caches: dict[str, torch.Tensor] = {}
        self._phases: dict[str, FullPhase | GatedPhase] = {
            phase: make_phase(denoiser, groups, conditioning, phase) for phase in phases(groups)
        }

    @property
    def modules(self) -> tuple[FullPhase | GatedPhase, ...]:
        """The phases, in the order of the bundle's graphs."""
        return tuple(self._phases.values())

    def __call__(self, phase: str, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        module = self._phases[phase]
        reads = [self._caches[group.name] for group in module.reads]
        conditions = self._full_inputs if isinstance(module, FullPhase) else self._gated_inputs
        noise_pred: torch.Tensor
        noise_pred, *written = module(sample, timestep, *conditions, *reads)
        self._caches |= {
            group.name: cache for group, cache in zip(module.writes, written, strict=True)
        }
        return noise_pred


def _run(
    case: TrajectoryCase,
    scheduler_config: dict[str, Any],
    graphs: _Graphs,
    latents: np.ndarray,
) -> np.ndarray:
    spec = sampler_spec(case.scheduler)
    scheduler = getattr(diffusers, spec.scheduler_class).from_config(
        scheduler_config, **spec.overrides
    )
    scheduler.set_timesteps(case.steps)
    # PNDM evaluates once more than asked for; steps are counted from after it.
    extra = len(scheduler.timesteps) - case.steps * scheduler.order
    sample = torch.from_numpy(latents) * scheduler.init_noise_sigma
    step_plan = tgate_plan(
        case.steps,
        case.gate_step,
        extra,
        sp_interval=case.sp_interval,
        fi_interval=case.fi_interval,
        warm_up=case.warm_up,
    )
    for phase, timestep in zip(step_plan.phases, scheduler.timesteps, strict=True):
        scaled = scheduler.scale_model_input(sample, timestep)
        noise_pred = graphs(phase, scaled, timestep[None].float())
        sample = scheduler.step(noise_pred, timestep, sample, return_dict=False)[0]
    result: np.ndarray = sample.numpy()
    return result
