"""A model without a name is sampled by its own sampler, as diffusers would."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest

from tests.support.small_folder import edit_json
from tgate_export.bundle.sampler_names import EDM, EVERY
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import in_python, worded
from tgate_export.families.names import NAMED_MODELS, named_by_hub_id
from tgate_export.families.sampling import own_sampler, sampling_notes
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.samplers.specs import sampler_spec
from tgate_export.samplers.tables import make_scheduler

# Of published pipelines and of what trainers save.
OWN: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("PNDMScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_order": 2}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("DEISMultistepScheduler", {}),
    ("LCMScheduler", {"original_inference_steps": 100}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
    ("LMSDiscreteScheduler", {}),
    ("DPMSolverSDEScheduler", {}),
    ("DPMSolverSinglestepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("TCDScheduler", {}),
    ("DDPMScheduler", {}),
    ("EDMEulerScheduler", {"sigma_data": 1.0, "prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistepScheduler", {"sigma_data": 0.5}),
]


def with_scheduler(folder: Path, name: str, config: dict[str, Any]) -> ModelSource:
    edit_json(folder / "model_index.json", scheduler=["diffusers", name])
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return resolve_source(str(folder))


def told(scheduler: Any) -> tuple[type, dict[str, Any]]:
    """Everything that a scheduler was made with."""
    names = inspect.signature(type(scheduler).__init__).parameters.keys() - {"self"}
    return type(scheduler), {name: scheduler.config[name] for name in names}


@pytest.mark.parametrize(("name", "config"), OWN)
def test_own_sampler_is_the_pipeline_s_own(
    pipeline: Path, name: str, config: dict[str, Any]
) -> None:  # fmt: skip
    source = with_scheduler(pipeline, name, config)
    effective = source.config("scheduler")
    own = told(getattr(diffusers, name).from_config(effective))
    like = [s for s in (*EVERY, *EDM) if sampler_spec(s).scheduler_class == name]
    equal = {sampler for sampler in like if told(make_scheduler(sampler, effective)) == own}
    found = own_sampler(source)
    assert found in equal if equal else found is None
    notes = [worded(note, in_python) for note in sampling_notes(source)]
    if found in (None, "pndm"):
        assert source.defaults == source.family.defaults
        assert f"its own sampler is {name}" in notes[0]
        assert ("a bundle has no such sampler" in notes[0]) == (found is None)
    else:
        assert source.defaults.scheduler == found
        assert not any("its own sampler" in note for note in notes)


def test_class_of_a_folder_without_an_entry_in_its_index(pipeline: Path) -> None:
    config = pipeline / "scheduler" / "scheduler_config.json"
    config.write_text('{"_class_name": "EulerDiscreteScheduler"}')
    assert resolve_source(str(pipeline)).defaults.scheduler == "euler"
    config.write_text("{}")
    assert resolve_source(str(pipeline)).defaults.scheduler == "ddim"


@pytest.mark.parametrize(
    ("name", "embedded", "scale"),
    [("LatentConsistencyModelPipeline", True, 8.5), ("StableDiffusionPipeline", True, 8.5),
     ("StableDiffusionPipeline", False, 1.0)],
)  # fmt: skip
def test_an_lcm_takes_few_steps(
    pipeline: Path, name: str, embedded: bool, scale: float
) -> None:  # fmt: skip
    edit_json(pipeline / "model_index.json", _class_name=name)
    edit_json(pipeline / "unet" / "config.json", time_cond_proj_dim=16 if embedded else None)
    source = with_scheduler(pipeline, "LCMScheduler", {})
    call = inspect.signature(diffusers.LatentConsistencyModelPipeline.__call__).parameters
    found = source.defaults
    assert (found.scheduler, found.num_inference_steps) == (
        "lcm",
        call["num_inference_steps"].default,
    )
    assert found.guidance_scale == scale
    if embedded:
        assert scale == call["guidance_scale"].default
    assert list(sampling_notes(source)) == []


def test_what_a_folder_does_not_say_is_noted(pipeline: Path) -> None:
    trailing: dict[str, Any] = {"timestep_spacing": "trailing"}
    source = with_scheduler(pipeline, "EulerDiscreteScheduler", trailing)
    (note,) = sampling_notes(source)
    assert "distilled to a few steps" in worded(note, in_python)
    assert worded(note, on_command_line).endswith(
        "if it is one, build with --guidance none and generate with its --steps"
    )
    assert list(sampling_notes(source.guided_by("none"))) == []
    trailing["rescale_betas_zero_snr"] = True  # which needs trailing timesteps, whatever the steps
    source = with_scheduler(pipeline, "EulerDiscreteScheduler", trailing)
    assert list(sampling_notes(source)) == []


@pytest.mark.parametrize("name", [name for name, m in NAMED_MODELS.items() if m.hub_id])
def test_an_id_is_sampled_as_the_name_that_has_it(name: str) -> None:
    model = NAMED_MODELS[name]
    for hub_id in (str(model.hub_id), str(model.hub_id).upper()):
        assert named_by_hub_id(hub_id) == {
            "defaults": model.defaults, "guidance": model.guidance,
        }  # fmt: skip
    assert named_by_hub_id("someone/else") == {}


def test_models_preconditioned_otherwise_have_their_own_sampler_alone(
    pipeline: Path,
) -> None:
    for name, sampler in (("EDMEulerScheduler", "edm-euler"),
                          ("EDMDPMSolverMultistepScheduler", "edm-dpm++2m")):  # fmt: skip
        source = with_scheduler(pipeline, name, {})
        assert (source.samplers, source.defaults.scheduler) == ((sampler,), sampler)
    assert with_scheduler(pipeline, "EulerDiscreteScheduler", {}).samplers is None
    with pytest.raises(ModelError, match="EDMDPMSolverMultistepScheduler with a configuration"):
        with_scheduler(pipeline, "EDMDPMSolverMultistepScheduler", {"solver_order": 3})
    with pytest.raises(InvalidRequestError, match="unknown scheduler 'edm'"):
        make_scheduler("edm", {})


def test_preconditioning_is_that_of_the_paper() -> None:
    """Karras et al., table 1: the sample is scaled by 1 / sqrt(sigma^2 + sigma_data^2)."""
    from tgate_export.samplers.tables import compile_scheduler

    scheduler = make_scheduler("edm-euler", {"sigma_data": 0.7})
    table = compile_scheduler("edm-euler", scheduler, [4]).for_steps(4)
    assert table.input_scale == pytest.approx(1 / math.sqrt(80.0**2 + 0.7**2))
    assert table.timesteps[0] == pytest.approx(math.log(80.0) / 4)
