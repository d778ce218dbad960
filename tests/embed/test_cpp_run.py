"""The C++ library draws what the Python runtime draws.

The same library runs the same graphs on both sides, so latents differ only where `log`, `sin` or
`cos` of the noise round differently: by a unit in the last place of a 32-bit float.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from tests.support.cpp_driver import Driver
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.data.shapes_world import COLOURS, SHAPES

SCHEDULERS = ("ddim", "euler", "dpm++2m", "pndm")
GATES = (1, 5, 10, 25)
PROMPTS = [
    f"a {COLOURS[(index + 1 + index // 8) % 8]} {SHAPES[index % 4]} on a {ground} background"
    for index, ground in enumerate(COLOURS * 3)
]
# Every setting draws two of the prompts; all together draw all of them.
CASES = [
    (scheduler, gate, [PROMPTS[(2 * index + offset) % len(PROMPTS)] for offset in (0, 1)])
    for index, (scheduler, gate) in enumerate((s, g) for s in SCHEDULERS for g in GATES)
]


@pytest.fixture(scope="module")
def shapes_pipeline(plain_sessions: None, shapes_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(shapes_bundle, "onnxruntime:cpu")


def texts(*prompts: str) -> dict[str, Any]:
    return {"texts": list(prompts)}


def array(tensor: dict[str, Any]) -> np.ndarray:
    return np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])


def python_run(pipeline: TGatePipeline, prompts: Any, **options: Any) -> dict[str, Any]:
    """Draw with the Python runtime: images, final latents, and the phases of a part of the call."""
    latents: list[np.ndarray] = []
    phases: list[str] = []

    def keep(info: Any) -> None:
        phases.append(info.phase)
        if info.step + 1 == info.evaluations:
            latents.append(info.latents())

    output = pipeline(prompts, callback_on_step_end=keep, **options)
    images = [np.asarray(image) for image in output.images]
    return {"images": images, "latents": np.concatenate(latents), "phases": phases}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    latents = np.concatenate([array(part) for part in found["latents"]])
    assert latents.shape == expected["latents"].shape
    assert np.abs(latents - expected["latents"]).max() <= 1e-5
    assert [step["phase"] for step in found["steps"]] == expected["phases"]
    assert len(found["images"]) == len(expected["images"])
    for mine, theirs in zip(found["images"], expected["images"], strict=True):
        difference = np.array(mine, dtype=int).reshape(theirs.shape) - theirs
        assert np.abs(difference).max() <= 1


def test_the_cases_cover_the_prompts() -> None:
    assert len(set(PROMPTS)) == 24
    assert {prompt for *_, prompts in CASES for prompt in prompts} == set(PROMPTS)


@pytest.mark.parametrize(("scheduler", "gate", "prompts"), CASES)
def test_pictures_are_those_of_the_python_runtime(
    driver: Driver, shapes_bundle: Path, shapes_pipeline: TGatePipeline,
    scheduler: str, gate: int, prompts: list[str],
) -> None:  # fmt: skip
    options = {"scheduler": scheduler, "gate_step": gate, "num_inference_steps": 25, "seed": 7}
    expected = python_run(shapes_pipeline, prompts, **options)
    request = {"prompt": texts(*prompts), **options}
    assert_same(driver("run", bundle=str(shapes_bundle), request=request), expected)
    assert len({image.tobytes() for image in expected["images"]}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("gate", GATES)
def test_all_prompts_with_every_setting(
    driver: Driver, shapes_bundle: Path, shapes_pipeline: TGatePipeline, scheduler: str, gate: int
) -> None:
    options = {"scheduler": scheduler, "gate_step": gate, "num_inference_steps": 25, "seed": 11}
    expected = python_run(shapes_pipeline, PROMPTS, **options)
    # Three calls of eight images each, so three times the last step.
    assert len(PROMPTS) == 24
    request = {"prompt": texts(*PROMPTS), **options}
    assert_same(driver("run", bundle=str(shapes_bundle), request=request), expected)


@pytest.fixture(scope="module")
def twice_bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a sampler that evaluates twice a step, as `build --samplers heun` makes it."""
    folder = tmp_path_factory.mktemp("twice") / "bundle"
    with tiny.only_samplers("ddim"):
        return build_bundle(str(tiny_pipeline_dir), samplers="heun", out=folder).path


def test_two_evaluations_a_step_across_a_gate(driver: Driver, twice_bundle: Path) -> None:
    """Both of a step are of one phase; the last step of Heun has a single one."""
    options: dict[str, Any] = {"num_inference_steps": 5, "gate_step": 2, "scheduler": "heun"}
    options |= {"guidance_scale": [5.0]}
    # Not of a seed: nine evaluations make 1e-5 of what is rounded in other ways.
    noise = np.random.default_rng(4).standard_normal((2, 4, 8, 8), dtype=np.float32)
    pipeline = TGatePipeline.from_bundle(twice_bundle, "onnxruntime:cpu")
    expected = python_run(pipeline, PROMPTS[:2], latents=noise, **options)
    assert expected["phases"] == ["full"] * 4 + ["gated"] * 5
    latents = {"shape": list(noise.shape), "data": noise.ravel().tolist()}
    request = {"prompt": texts(*PROMPTS[:2]), "latents": latents, **options}
    assert_same(driver("run", bundle=str(twice_bundle), request=request), expected)
    full = python_run(pipeline, PROMPTS[:2], latents=noise, **options | {"gate_step": 5})
    assert np.abs(full["latents"] - expected["latents"]).max() > 1e-3
