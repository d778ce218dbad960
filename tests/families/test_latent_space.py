"""Latents are scaled as the pipeline's own class scales them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

from tests.families.test_source import edit_json
from tests.support import tiny
from tgate_export.common.errors import ModelError
from tgate_export.families.modules import VaeDecoder, VaeEncoder
from tgate_export.families.registry import FAMILIES, family_of
from tgate_export.families.source import resolve_source

# As Playground v2.5's, which CosXL has, too.
MEAN, DEVIATION = [-1.6574, 1.886, -1.383, 2.5155], [8.4927, 5.9022, 6.5498, 5.2299]
SAID = [
    {},
    {"latents_mean": MEAN, "latents_std": DEVIATION},
    {"latents_mean": MEAN, "latents_std": None},
    {"latents_mean": MEAN, "latents_std": DEVIATION, "shift_factor": 0.5, "scaling_factor": 0.5},
]

IMAGE_TO_IMAGE = [
    kind.name
    for family, kinds in tiny.FAMILIES.items()
    if FAMILIES[family].image_to_image
    for kind in kinds
    if not kind.refiner  # its VAE is SDXL's
]


@pytest.fixture(scope="module", params=IMAGE_TO_IMAGE)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latents") / "pipeline"
    tiny.save(request.param, folder)
    return folder


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("said", SAID)
@torch.no_grad()
def test_latents_are_those_of_diffusers(folder: Path, said: dict[str, Any]) -> None:
    usual = {"latents_mean": None, "latents_std": None, "shift_factor": None,
             "scaling_factor": 0.13025}  # fmt: skip
    edit_json(folder / "vae" / "config.json", **usual | said)
    pipe = quiet(diffusers.DiffusionPipeline.from_pretrained(str(folder)))
    by_channel = family_of(type(pipe).__name__, "it").latents_by_channel
    # What is decoded at the end of a run: the latents that a run without a decoder gives.
    run = {"num_inference_steps": 1, "height": 16, "width": 16, "prompt": "a", "latents":
           torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}  # fmt: skip
    latents = pipe(output_type="latent", **run).images
    images = pipe(output_type="np", **run).images
    found = VaeDecoder(pipe.vae, by_channel=by_channel)(latents)
    np.testing.assert_allclose(found.numpy(), images, atol=2e-6)
    # What image-to-image begins with.
    cls = getattr(diffusers, type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline"))
    begin = cls(**pipe.components)
    pixels = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(1))
    module = importlib.import_module(cls.__module__)
    no_noise = mock.patch.object(
        module, "randn_tensor", side_effect=lambda shape, **_: torch.zeros(shape)
    )
    mode = mock.patch.object(
        module, "retrieve_latents", side_effect=lambda out, **_: out.latent_dist.mode()
    )
    still = mock.patch.object(type(begin.scheduler), "add_noise", lambda _self, x, *_: x)
    with no_noise, mode, still:
        expected = begin.prepare_latents(
            2 * pixels.permute(0, 3, 1, 2) - 1, torch.tensor([0]), 1, 1, torch.float32, "cpu"
        )
    found = VaeEncoder(pipe.vae, by_channel=by_channel)(pixels)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=2e-6)


def test_a_mean_of_other_channels_is_refused(folder: Path) -> None:
    edit_json(folder / "vae" / "config.json", latents_mean=MEAN * 4, latents_std=DEVIATION)
    if family_of(resolve_name(folder), "it").latents_by_channel:
        with pytest.raises(ModelError, match=r"16 latents_mean, expected one for each of 4"):
            resolve_source(str(folder))
    else:
        resolve_source(str(folder))


def resolve_name(folder: Path) -> str:
    return str(diffusers.DiffusionPipeline.load_config(str(folder))["_class_name"])
