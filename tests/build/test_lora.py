"""A bundle of a model with a LoRA is that of the model with the LoRA fused by diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from tests.oracle.families import diffusers_run
from tests.support import loras, tiny
from tests.support.command import run
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import open_bundle
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import ModelError
from tgate_export.runtime.rebuild import rebuild
from tgate_export.verify.differences import require

STEPS = 4
# fp32 on both sides, as in tests/e2e/test_families.py; the LoRA changes latents by far more.
RELATIVE = 2e-5


def test_a_bundle_with_a_lora(
    tiny_pipeline_dir: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tgate_export.export import export_unit

    exported: list[str] = []
    export = export_unit.export_graph

    def export_and_note(graph: Any, *arguments: Any) -> Any:
        exported.append(graph.name)
        return export(graph, *arguments)

    monkeypatch.setattr(export_unit, "export_graph", export_and_note)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tiny_pipeline_dir, safety_checker=None)
    made = loras.change(pipe.unet, loras.MOST)
    file = loras.save(loras.kohya("lora_unet_", made, 2.0), tmp_path / "fox.safetensors")
    pipe.load_lora_weights(tmp_path, weight_name=file.name)
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused")

    out = tmp_path / "bundle"
    build = ("build", "--model", tiny_pipeline_dir, "--out", out)
    assert run(capsys, *build, "--lora", f"{file}:0.5").code == 0
    # The text encoder and the VAE are those of `tiny_bundle`, out of the cache.
    assert set(exported) <= {"full", "gated"}
    assert "is up to date" in run(capsys, *build, "--lora", f"{file}:0.5").err
    bundle = open_bundle(out)
    plain = open_bundle(tiny_bundle)
    for graph in ("text_encoder.onnx", "vae_decoder.onnx", "vae_decoder.weights"):
        assert bundle.manifest.files[f"graphs/{graph}"] == plain.manifest.files[f"graphs/{graph}"]
    command = on_command_line(rebuild(bundle))
    assert f" --lora {file}:0.5 " in command
    assert f"lora       {file} scale 0.5" in run(capsys, "inspect", out).out.replace("\n", "")

    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    call: dict[str, Any] = {"prompt": "a fox", "num_inference_steps": STEPS, "guidance_scale": 6.0}
    expected = diffusers_run(
        tmp_path / "fused", latents=latents, scheduler="ddim", output_type="latent", **call
    )
    found, without = (
        TGatePipeline.from_bundle(path, "onnxruntime:cpu")(
            latents=latents, scheduler="ddim", output_type="latent", gate_step=STEPS, **call
        ).images
        for path in (out, tiny_bundle)
    )
    assert np.abs(found - expected).max() < RELATIVE * np.abs(expected).max()
    assert np.abs(without - expected).max() > 100 * RELATIVE * np.abs(expected).max()

    require(verify_bundle(out).differences)
    exported.clear()
    other = build_bundle(str(tiny_pipeline_dir), loras=[(str(file), -1.0)], out=tmp_path / "other")
    assert not other.up_to_date
    assert set(exported) <= {"full", "gated"}
    assert other.manifest.build_key != bundle.manifest.build_key
    weights = "graphs/denoiser.weights"
    assert other.manifest.files[weights] != bundle.manifest.files[weights]
    loras.save(loras.kohya("lora_unet_", made, 1.0), file)
    with pytest.raises(ModelError, match="is not the file that the bundle was built with"):
        verify_bundle(out)
    file.unlink()
    with pytest.raises(ModelError, match="is not there any more"):
        verify_bundle(out)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--lora", "no.safetensors"], "lora no.safetensors: no such file"),
        (["--lora", "no.safetensors:0.5"], "lora no.safetensors: no such file"),
        (["--lora", "{file}:much"], "its scale must be a number, got 'much'"),
        (["--lora", "{file}:"], "its scale must be a number, got ''"),
        (["--lora", "{file}:nan"], "its scale must be a finite number, got nan"),
        (["--lora", "{file}:-inf"], "its scale must be a finite number, got -inf"),
        (["--lora", "{file}", "--lora", "{file}:2"], "is given twice"),
    ],
)
def test_refused(
    capsys: pytest.CaptureFixture[str],
    tiny_pipeline_dir: Path,
    tmp_path: Path,
    options: list[str],
    reason: str,
) -> None:
    pair = torch.ones(1, 2), torch.ones(2, 1)
    file = loras.save(
        loras.kohya("lora_unet_", {"no_such_layer": pair}), tmp_path / "mine.safetensors"
    )
    out = tmp_path / "out" / "bundle"
    given = [option.format(file=file) for option in options]
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out, *given)
    assert reason in result.error()
    assert result.code == 2
    assert not out.parent.exists()


@pytest.mark.builds
def test_a_file_that_does_not_fit_leaves_nothing(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    pair = torch.ones(1, 2), torch.ones(2, 1)
    file = loras.save(loras.peft("unet.", {"no_such_layer": pair}), tmp_path / "a.safetensors")
    out = tmp_path / "out" / "bundle"
    with (
        pytest.raises(ModelError, match=r"no layer no_such_layer \(1 of 1 are not there\)"),
        tiny.only_samplers("ddim"),
    ):
        build_bundle(str(tiny_pipeline_dir), loras=[(str(file), 1.0)], out=out)
    assert not list((tmp_path / "out").glob("*"))
