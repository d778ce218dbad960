"""A bundle whose VAE takes tiles: images are those of the same latents in diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracle import families as oracle
from tests.oracle.tiled_vae import blended_tiles
from tests.support.solo import assert_equals_solo, batcher_of
from tests.support.tiled import HEIGHT, LEFTS, SIDES, TILE, TOPS, WIDTH, tiled_bundle
from tgate_export import TGatePipeline
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import open_bundle
from tgate_export.cli._hints import on_command_line
from tgate_export.runtime.rebuild import rebuild
from tgate_export.verify.differences import require

pytestmark = pytest.mark.builds
CALL: dict[str, Any] = {"num_inference_steps": 4, "scheduler": "ddim"}


@pytest.fixture(scope="module")
def bundle(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiled_bundle(tmp_path_factory, tiny_pipeline_dir)


@pytest.fixture(scope="module")
def pipeline(bundle: Path, cpu_backend: str) -> TGatePipeline:
    return TGatePipeline.from_bundle(bundle, cpu_backend)


@torch.no_grad()
def decoded(folder: Path, latents: np.ndarray) -> np.ndarray:
    vae = oracle.load_pipeline(folder, "diffusers").vae
    scaled = torch.from_numpy(latents) / vae.config.scaling_factor
    images = blended_tiles(vae, scaled, lambda t: vae.decode(t).sample, TOPS, LEFTS, SIDES, 2)
    found: np.ndarray = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return found


@torch.no_grad()
def encoded(folder: Path, images: np.ndarray) -> np.ndarray:
    vae = oracle.load_pipeline(folder, "diffusers").vae
    pixels = 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
    latents = blended_tiles(
        vae, pixels, lambda t: vae.encode(t).latent_dist.mode(), TOPS, LEFTS, SIDES, 1, read=2
    )
    found: np.ndarray = (latents * vae.config.scaling_factor).numpy()
    return found


def test_decoded_in_tiles(pipeline: TGatePipeline, tiny_pipeline_dir: Path) -> None:
    prompts, call = ["a fox", "a red circle"], {"seed": 3, **CALL}
    latents = np.asarray(pipeline(prompts, output_type="latent", **call).images)
    images = np.asarray(pipeline(prompts, output_type="np", **call).images)
    assert images.shape == (2, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(images, decoded(tiny_pipeline_dir, latents), atol=1e-4)


def test_begins_with_an_image_in_tiles(
    pipeline: TGatePipeline, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    image = random.random((1, HEIGHT, WIDTH, 3), dtype=np.float32)
    noise = random.standard_normal((1, 4, HEIGHT // 2, WIDTH // 2), dtype=np.float32)
    call: dict[str, Any] = {"strength": 0.5, "guidance_scale": 6.0, "num_inference_steps": 6}
    found = pipeline(
        "a fox", image=image, latents=noise, scheduler="ddim", gate_step=6, output_type="latent",
        **call,
    )  # fmt: skip
    monkeypatch.setattr(oracle, "image_latents", encoded)
    plain = oracle.diffusers_image_run.__wrapped__  # type: ignore[attr-defined]
    expected = plain(
        tiny_pipeline_dir, prompt="a fox", image=image, noise=noise, scheduler="ddim", **call
    )
    assert np.abs(found.images - expected).max() < 2e-5 * np.abs(expected).max()


def test_in_flight(pipeline: TGatePipeline) -> None:
    calls = [
        {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "output_type": "np"}
        for prompt, seed, steps in (("a fox", 1, 3), ("a hen", 2, 3), ("a cow", 3, 5))
    ]
    calls[1] |= {"image": np.full((HEIGHT, WIDTH, 3), 77, np.uint8), "strength": 0.9}
    with batcher_of(pipeline) as batcher:
        assert_equals_solo(batcher, pipeline, calls)


def test_what_a_bundle_says_of_it(bundle: Path) -> None:
    opened = open_bundle(bundle)
    raw = json.loads((bundle / "manifest.json").read_text())
    assert raw["requires"] == ["tiles"]
    for name in ("vae_encoder", "vae_decoder"):
        assert raw["graphs"][name]["tiles"] == {"size": TILE, "overlap": TILE // 4}
    assert raw["graphs"]["vae_decoder"]["inputs"][0]["shape"] == ["batch", 4, 8, 8]
    assert " --vae-tile 16 " in on_command_line(rebuild(opened)) + " "
    require(verify_bundle(bundle).differences)
