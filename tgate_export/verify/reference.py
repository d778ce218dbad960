"""The gated run in PyTorch with diffusers' own scheduler: what a bundle's run must equal."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromFormula, FromImage, FromParameter
from tgate_export.bundle.sampler_names import draws_noise
from tgate_export.families.loading import Components, computing_in_fp32, convert
from tgate_export.families.modules import VaeEncoder
from tgate_export.families.source import ModelSource
from tgate_export.methods.denoiser_phases import DenoiserPhases
from tgate_export.runtime.formulas import formula_row
from tgate_export.runtime.guidance import by_prompt_alone, effective_scale
from tgate_export.runtime.noise import standard_normal
from tgate_export.samplers.probe import step_of_evaluation
from tgate_export.samplers.tables import make_scheduler

# Above this many denoiser weights a trajectory is a few steps long, not the whole run.
LARGE_DENOISER = 100_000_000
# Of a video: the noise on the image is the runtime's own.
NO_NOISE = {"noise_aug_strength": 0.0}
# Neither the official method's nor ones at which a term vanishes.
NUMBERS = {"cache_blend": 1.25, "guidance_carry": 0.75}
PROMPT, NEGATIVE_PROMPT = "a red circle on a blue background", "a green square"


@dataclass(frozen=True)
class TrajectoryCase:
    """One run to compare.

    Attributes:
        scheduler: the sampler.
        steps: denoising steps.
        settings: of the method's parameters, those that are not the least that they can be (the
            gate step is one of them), and its numbers that are not the bundle's defaults.
    """

    scheduler: str
    steps: int
    settings: Mapping[str, float]

    @property
    def ungated(self) -> bool:
        """Whether no step is gated."""
        return self.settings["gate_step"] >= self.steps

    def __str__(self) -> str:
        gated = "no gate" if self.ungated else f"gate {self.settings['gate_step']}"
        others = [f", {name} {n}" for name, n in self.settings.items() if name != "gate_step"]
        return f"{self.scheduler}, {gated} of {self.steps}{''.join(others)}"

    def rule_values(self, manifest: Manifest) -> dict[str, int]:
        """Return the values of the parameters of the method's rule."""
        least = {name: manifest.parameters[name].min for name in manifest.method.parameters}
        return {name: int(self.settings.get(name, value or 0)) for name, value in least.items()}


@dataclass(frozen=True)
class Trajectory:
    """A case with its starting latents and PyTorch's final ones [1, C, h, w].

    `call` is what `TGatePipeline` is asked for, `parameters` are those that it takes by name.
    """

    case: TrajectoryCase
    call: Mapping[str, Any]
    parameters: dict[str, Any]
    latents: np.ndarray
    expected: np.ndarray


def trajectory_cases(manifest: Manifest) -> tuple[TrajectoryCase, ...]:
    """Choose the runs to compare: four schedulers and four gates, or one short run if large."""
    # The shortest intervals: they take turns at every graph that the bundle has.
    intervals = {
        comparison.modulo: 2
        for guard in manifest.method.rule
        for comparison in guard.all
        if comparison.modulo is not None and guard.phase in manifest.graphs
    }
    # One that draws noise cannot be compared.
    steady = [name for name in manifest.samplers if not draws_noise(name)]
    if manifest.graph("full").parameters > LARGE_DENOISER:
        steps, gate = (6, 3) if intervals else (4, 2)
        default = manifest.defaults.scheduler
        first = [name for name in (default, "ddim") if name in steady]
        return tuple(
            TrajectoryCase(name, steps, {"gate_step": gate, **intervals})
            for name in (first or steady)[:1]
        )
    steps = manifest.defaults.num_inference_steps
    gates = sorted({1, max(1, steps // 5), manifest.defaults.gate_step, steps})
    usual = ("ddim", "euler", "dpm++2m", "pndm")
    schedulers = [name for name in steady if name in usual] or steady[:1]
    cases = [
        TrajectoryCase(name, steps, {"gate_step": gate}) for name in schedulers for gate in gates
    ]
    settings: dict[str, float]
    if intervals:
        settings = {"gate_step": max(2, steps // 2), **intervals}
        cases += [TrajectoryCase(name, steps, settings) for name in schedulers]
    if "guidance_carry" in manifest.parameters:
        settings = {"gate_step": max(1, min(manifest.defaults.gate_step, steps - 1)), **NUMBERS}
        cases += [TrajectoryCase(name, steps, settings) for name in schedulers]
    return tuple(cases)


@torch.no_grad()
def trajectories(
    source: ModelSource,
    parts: Components,
    phases: DenoiserPhases,
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
    values |= own
    graphs = _Graphs(denoiser, phases)
    _, *shape = manifest.latents.shape(1, manifest.size.height.opt, manifest.size.width.opt)
    found = []
    for index, case in enumerate(cases):
        latents = standard_normal(tuple(shape), seed=index)[None]
        graphs.values = values | {
            name: torch.tensor([float(case.settings[name])])
            for name in phases.method.numbers
            if name in case.settings
        }
        with computing_in_fp32(*graphs.modules):
            expected = _run(
                case, case.rule_values(manifest), source.config("scheduler"), graphs, latents
            )
        latents = latents.reshape(manifest.latents.unfolded(latents.shape))
        expected = expected.reshape(latents.shape)
        found.append(Trajectory(case, call, pictures, latents, expected))
    return tuple(found)


# (conditions by graph input [1, ...], what the runtime is asked for)
Conditions = tuple[dict[str, torch.Tensor], dict[str, Any]]


def _own_conditions(manifest: Manifest, known: Collection[str]) -> Conditions:
    """Return the parameters and pictures that the denoiser takes besides what is known."""
    values: dict[str, torch.Tensor] = {}
    pictures: dict[str, np.ndarray] = {}
    tensors = [tensor for phase in manifest.phases for tensor in manifest.graph(phase).inputs]
    for tensor in tensors:
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
    return values, pictures


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
            value = value.float()
            if entry.chunks is not None:  # of a prompt of one chunk
                value = value.repeat(1, entry.chunks, 1)
            values[prefix + entry.name] = value
    negative = {"negative_prompt": NEGATIVE_PROMPT} if manifest.takes_negative else {}
    return values, {"prompt": PROMPT, **negative}


class _Graphs:
    """Every phase of a denoiser, and the caches that they hand on."""

    def __init__(
        self,
        denoiser: torch.nn.Module,
        phases: DenoiserPhases,
    ) -> None:
        self.phases = phases
        self.values: Mapping[str, torch.Tensor] = {}  # conditions and parameters by name
        self._caches: dict[str, torch.Tensor] = {}
        self._modules = {name: phases.module(denoiser, name) for name in phases.names}

    @property
    def modules(self) -> tuple[torch.nn.Module, ...]:
        """The phases, in the order of the bundle's graphs."""
        return tuple(self._modules.values())

    def __call__(self, phase: str, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        conditions = [self.values[name] for name in self.phases.inputs(phase)]
        reads = [self._caches[group.name] for group in self.phases.reads(phase)]
        noise_pred: torch.Tensor
        noise_pred, *written = self._modules[phase](sample, timestep, *conditions, *reads)
        self._caches |= {
            group.name: cache
            for group, cache in zip(self.phases.writes(phase), written, strict=True)
        }
        return noise_pred


def _run(
    case: TrajectoryCase,
    settings: Mapping[str, int],
    scheduler_config: dict[str, Any],
    graphs: _Graphs,
    latents: np.ndarray,
) -> np.ndarray:
    scheduler = make_scheduler(case.scheduler, scheduler_config)
    scheduler.set_timesteps(case.steps)
    sample = torch.from_numpy(latents) * scheduler.init_noise_sigma
    step_plan = graphs.phases.method.plan(settings, step_of_evaluation(scheduler, case.steps))
    for phase, timestep in zip(step_plan.phases, scheduler.timesteps, strict=True):
        scaled = scheduler.scale_model_input(sample, timestep)
        noise_pred = graphs(phase, scaled, timestep[None].float())
        sample = scheduler.step(noise_pred, timestep, sample, return_dict=False)[0]
    result: np.ndarray = sample.numpy()
    return result
