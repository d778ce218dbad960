"""SDXL's refiner: by itself and after a base model, against diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.oracle.families import diffusers_image_run, ensemble_run
from tests.support.solo import assert_equals_solo, batcher_of
from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError

PROMPT = "A red circle on a blue background"
CALL: dict[str, Any] = {"guidance_scale": 6.0, "num_inference_steps": 10}
RELATIVE = 1e-4  # as in test_hires
SAMPLERS = ("ddim", "euler", "dpm++2m", "pndm")


@dataclass(frozen=True)
class Built:
    """Folders and bundles of a tiny base and a tiny refiner, and the noise of a run."""

    folders: tuple[Path, Path]
    base: TGatePipeline
    refiner: TGatePipeline
    noise: np.ndarray


@pytest.fixture(scope="module")
def built(sdxl_dir: Path, refiner_dir: Path, sdxl_bundle: Path, refiner_bundle: Path) -> Built:
    base, refiner = (
        TGatePipeline.from_bundle(bundle, "onnxruntime:cpu")
        for bundle in (sdxl_bundle, refiner_bundle)
    )
    shape = base.manifest.latents.shape(1, 16, 16)
    noise = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return Built((sdxl_dir, refiner_dir), base, refiner, noise)


def relative(found: Any, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def test_what_it_is(built: Built) -> None:
    manifest = built.refiner.manifest
    assert manifest.family == "stable-diffusion-xl-refiner"
    assert "vae_encoder" in manifest.graphs  # without being asked for
    assert list(manifest.tokenizers) == ["input_ids_2"]
    assert manifest.parameters["negative_aesthetic_score"].default == 2.5
    assert "target_size" not in manifest.parameters


@pytest.mark.parametrize("scores", [{}, {"aesthetic_score": 9.0, "negative_aesthetic_score": 1.0}])
@pytest.mark.parametrize("scheduler", ["euler", "dpm++2m"])
def test_a_picture_as_diffusers(built: Built, scheduler: str, scores: dict[str, float]) -> None:
    image = np.random.default_rng(1).random((1, 16, 16, 3), dtype=np.float32)
    call = CALL | {"strength": 0.5, "negative_prompt": "an umbrella", "prompt": PROMPT}
    found = built.refiner(
        image=image, latents=built.noise, gate_step=100, scheduler=scheduler,
        output_type="latent", **call | scores,
    )  # fmt: skip
    run = {"image": image, "noise": built.noise, "scheduler": scheduler, **call}
    expected = diffusers_image_run(built.folders[1], **run | scores)
    assert relative(found.images, expected) < RELATIVE
    other = diffusers_image_run(built.folders[1], **run, aesthetic_score=3.0)
    assert relative(found.images, other) > 3 * RELATIVE


def refined(built: Built, start: float, **call: Any) -> Any:
    both = {"prompt": PROMPT, "output_type": "latent", "seed": 3, **CALL, **call}
    begun = built.base(latents=built.noise, denoising_end=start, **both)
    return built.refiner(image=begun.images, denoising_start=start, **both)


@pytest.mark.parametrize("start", [0.5, 0.8])
@pytest.mark.parametrize("scheduler", SAMPLERS)
def test_an_ensemble_as_diffusers(built: Built, scheduler: str, start: float) -> None:
    """A sampler with a history begins anew at the refiner, there as here."""
    found = refined(built, start, gate_step=100, scheduler=scheduler)

    def expected(part: float) -> np.ndarray:
        return ensemble_run(
            *built.folders, prompt=PROMPT, latents=built.noise, start=part,
            scheduler=scheduler, **CALL,
        )  # fmt: skip

    assert relative(found.images, expected(start)) < RELATIVE
    assert relative(found.images, expected(0.3)) > 10 * RELATIVE


def test_each_has_its_own_gate(built: Built) -> None:
    phases: list[list[str]] = [[], []]
    call: dict[str, Any] = {"prompt": PROMPT, "scheduler": "ddim", **CALL}
    begun = built.base(
        denoising_end=0.8, output_type="latent",
        callback_on_step_end=lambda info: phases[0].append(info.phase), **call,
    )  # fmt: skip
    built.refiner(
        image=begun.images, denoising_start=0.8,
        callback_on_step_end=lambda info: phases[1].append(info.phase), **call,
    )  # fmt: skip
    # The default gate of 10 of 25 keeps its place among the 8 steps of the one, and the 2 of the
    # other.
    assert phases == [["full"] * 3 + ["gated"] * 5, ["full", "gated"]]


def test_in_flight_batches_equal_solo_runs(built: Built) -> None:
    begun = built.base(PROMPT, denoising_end=0.5, output_type="latent", seed=1, **CALL)
    calls: list[dict[str, Any]] = [
        {"prompt": "a", "image": begun.images, "denoising_start": 0.5, "seed": 1, **CALL},
        {"prompt": "b", "image": np.zeros((16, 16, 3), np.uint8), "seed": 2, **CALL},
    ]
    with batcher_of(built.refiner) as batcher:
        assert_equals_solo(batcher, built.refiner, calls)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"denoising_end": 0.001}, "denoising_end 0.001 of 10 steps leaves no step to run"),
        ({"denoising_end": 1.0}, "denoising_end must be above 0 and below 1, got 1.0"),
        ({"denoising_end": True}, "denoising_end must be above 0"),
        ({"denoising_start": 0.5}, "denoising_start 0.5 needs an image"),
        ({"denoising_start": 0.9999, "image": "latents"}, "denoising_start 0.9999 of 10 steps"),
        # The last of PNDM's 11 evaluations is no beginning.
        (
            {"denoising_start": 0.9, "image": "latents", "scheduler": "pndm"},
            "denoising_start 0.9 of 10 steps leaves no step to run",
        ),
        ({"denoising_start": 0.5, "denoising_end": 0.5, "image": "latents"}, "is not before"),
        ({"denoising_start": 0.5, "strength": 0.5, "image": "latents"}, "strength 0.5 has no"),
        ({"denoising_end": 0.5, "hires": 2}, "hires is for whole runs"),
    ],
)
def test_refused(built: Built, call: dict[str, Any], message: str) -> None:
    if call.get("image"):
        call = call | {"image": built.noise}
    with pytest.raises(InvalidRequestError, match=message):
        built.base(PROMPT, **{"scheduler": "euler"} | CALL | call)
