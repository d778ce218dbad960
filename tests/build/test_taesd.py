"""A bundle of a model with a TAESD decodes and begins as diffusers does with it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import pytest
import torch

from tests.support import taesd, tiny
from tests.support.command import run
from tests.support.once import made_once
from tgate_export import TGatePipeline
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import open_bundle
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import ModelError
from tgate_export.runtime.rebuild import rebuild
from tgate_export.verify.differences import require

STEPS = 4
CALL: dict[str, Any] = {
    "prompt": "a fox", "num_inference_steps": STEPS, "guidance_scale": 6.0, "output_type": "np",
}  # fmt: skip


@pytest.mark.builds
def test_a_bundle_with_taesd(
    tiny_pipeline_dir: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vae = made_once(tmp_path_factory, "vaes/taesd", taesd.save)
    copy = tmp_path / "vae"
    taesd.save(copy)
    out = tmp_path / "bundle"
    build = ("build", "--model", tiny_pipeline_dir, "--out", out, "--image-to-image")
    with tiny.only_samplers("ddim"):
        assert run(capsys, *build, "--vae", copy).code == 0
        assert "is up to date" in run(capsys, *build, "--vae", vae).err
    bundle, plain = open_bundle(out), open_bundle(tiny_bundle)
    for name in ("denoiser.weights", "text_encoder.weights"):
        assert bundle.manifest.files[f"graphs/{name}"] == plain.manifest.files[f"graphs/{name}"]
    assert bundle.manifest.graphs["vae_decoder"].parameters < (
        plain.manifest.graphs["vae_decoder"].parameters
    )
    assert f" --vae {copy} " in on_command_line(rebuild(bundle))
    assert f"vae        {copy}" in run(capsys, "inspect", out).out.replace("\n", "")

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir, safety_checker=None)
    pipe.vae = diffusers.AutoencoderTiny.from_pretrained(vae)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    begin = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    for each in (pipe, begin):
        each.set_progress_bar_config(disable=True)
    ours = TGatePipeline.from_bundle(out, "onnxruntime:cpu")
    usual = {"scheduler": "ddim", "gate_step": STEPS, **CALL}
    noise = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    expected = pipe(latents=torch.from_numpy(noise), height=16, width=16, **CALL).images
    assert np.abs(ours(latents=noise, **usual).images - expected).max() < 1e-4

    image = np.random.default_rng(1).random((1, 16, 16, 3), dtype=np.float32)
    module = importlib.import_module(type(begin).__module__)
    with mock.patch.object(module, "randn_tensor", return_value=torch.from_numpy(noise)):
        expected = begin(image=torch.from_numpy(image).permute(0, 3, 1, 2), strength=0.5, **CALL)
    found = ours(latents=noise, image=image, strength=0.5, **usual).images
    assert np.abs(found - expected.images).max() < 1e-4
    other = ours(latents=noise, image=1 - image, strength=0.5, **usual).images
    assert np.abs(found - other).max() > 1e-3

    require(verify_bundle(out).differences)
    (copy / taesd.WEIGHTS).unlink()
    with pytest.raises(ModelError, match="has no safetensors weights"):
        verify_bundle(out)
