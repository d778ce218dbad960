"""A bundle that got LoRA files later is that of the model with the LoRA fused by diffusers."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundle.test_plans import bundle as bundle_with_plans  # noqa: F401
from tests.oracle.families import diffusers_run
from tests.support import fused, loras, tiny
from tests.support.fused import contents
from tests.support.loras import MOST
from tests.support.once import made_once
from tests.test_import_rule import HEAVY
from tgate_export import TGatePipeline, build_bundle, fuse_loras
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.layers_file import read_layers
from tgate_export.bundle.plans import plan_sets, write_record
from tgate_export.common.hints import in_python

# How far graphs may be from PyTorch, which computes in fp32: 4e-6 was measured, and 2e-3 in fp16. A
# LoRA that is left out changes outputs by 0.1 and more.
GRAPHS = {"fp32": 2e-5, "fp16": 1e-2}
# How far weights may be from PEFT's, which in fp16 rounds the product of a LoRA before it is added.
WEIGHTS = {"fp32": 1e-6, "fp16": 1e-3}


def test_it_is_the_bundle_that_a_build_makes(
    tiny_pipeline_dir: Path, tiny_bundle: Path, unet_file: Path, tmp_path: Path
) -> None:
    """To the bit, manifest included; and the old one is as it was."""
    before = contents(tiny_bundle)
    given = [(str(unet_file), 0.5)]
    result = fuse_loras(tiny_bundle, given, out=tmp_path / "later")
    built = build_bundle(str(tiny_pipeline_dir), loras=given, out=tmp_path / "built")
    assert contents(tmp_path / "later") == contents(tmp_path / "built")
    assert open_bundle(tmp_path / "later").manifest == built.manifest == result.manifest
    assert contents(tiny_bundle) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "later"]
    again = build_bundle(str(tiny_pipeline_dir), loras=given, out=tmp_path / "later")
    assert again.up_to_date
    assert fuse_loras(tiny_bundle, given, out=tmp_path / "built").up_to_date
    assert not fuse_loras(tiny_bundle, given, out=tmp_path / "built", force=True).up_to_date


def test_runs_equal_diffusers_with_the_lora_fused(
    tiny_pipeline_dir: Path, tiny_bundle: Path, unet_file: Path, text_file: Path, tmp_path: Path
) -> None:
    files = ((unet_file, 0.5), (text_file, -1.0))
    given = [(str(file), scale) for file, scale in files]
    fuse_loras(tiny_bundle, given, out=tmp_path / "out")
    theirs = fused.fused(tiny_pipeline_dir, tmp_path / "theirs", *files)
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), dtype=np.float32)
    call: dict[str, Any] = {"prompt": "a fox", "num_inference_steps": 3, "guidance_scale": 6.0}
    expected = diffusers_run(
        theirs, latents=latents, scheduler="ddim", output_type="latent", **call
    )
    found, without = (
        TGatePipeline.from_bundle(path, "onnxruntime:cpu")(
            latents=latents, scheduler="ddim", output_type="latent", gate_step=3, **call
        ).images
        for path in (tmp_path / "out", tiny_bundle)
    )
    assert np.abs(found - expected).max() < GRAPHS["fp32"] * np.abs(expected).max()
    assert np.abs(without - expected).max() > 0.01 * np.abs(expected).max()


@pytest.fixture(scope="module", params=["sd15-fp16", "sdxl-fp32", "sdxl-fp16", "shapes-fp32"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, str]:
    """A pipeline's folder, its bundle, and its precision."""
    name, _, precision = str(request.param).partition("-")
    if name == "shapes":
        shapes: Path = request.getfixturevalue("shapes_dir")
        return shapes, request.getfixturevalue("shapes_bundle"), precision
    folder = made_once(
        tmp_path_factory, f"pipelines/{name}", lambda folder: tiny.save(name, folder)
    )
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):  # as tests/e2e/test_families.py
        bundle = made_once(
            tmp_path_factory, f"bundles/{name}-{precision}",
            lambda out: tiny.build(name, folder, out, precision=precision),
        )  # fmt: skip
    return folder, bundle, precision


@pytest.mark.builds
def test_graphs_equal_pytorch_and_what_changed_is_listed(
    model: tuple[Path, Path, str], tmp_path: Path
) -> None:
    folder, path, precision = model
    made = fused.changes(fused.pipeline(folder), MOST)
    file = fused.save(made, tmp_path / "a.safetensors")
    result = fuse_loras(path, [(str(file), 0.5)], out=tmp_path / "out")
    out, before = open_bundle(tmp_path / "out"), open_bundle(path)
    theirs = fused.fused(folder, tmp_path / "theirs", (file, 0.5), precision=precision)
    found = fused.graphs_differ(out, theirs)
    assert max(difference.relative for difference in found) < GRAPHS[precision]
    without = fused.graphs_differ(before, theirs)
    assert max(difference.relative for difference in without) > 0.1
    errors = fused.weight_errors(out, theirs)
    assert {(component, path) for component, path, _ in errors} >= {
        (tensor.component, tensor.layer) for tensor in result.changed
    }
    assert max(errors.values()) < WEIGHTS[precision]

    changed = {(tensor.graph, tensor.tensor) for tensor in result.changed}
    assert changed == fused.differing(before, out)
    assert len(changed) == len(result.changed)
    layers = {(tensor.component, tensor.layer) for tensor in result.changed}
    everything = {(name, layer) for name, change in made.items() for layer in change}
    assert everything == layers | set(result.unread)
    # From the gate on, text is not read any more.
    reading = {
        graph: {t.layer for t in result.changed if t.graph == graph}
        for graph in out.manifest.phases
    }
    text = {layer for layer in made["unet"] if layer.endswith((".attn2.to_k", ".attn2.to_v"))}
    assert text
    assert text <= reading["full"]
    assert not text & reading["gated"]
    for name in ("vae_decoder.onnx", "vae_decoder.weights", "sampler.onnx"):
        assert out.manifest.files[f"graphs/{name}"] == before.manifest.files[f"graphs/{name}"]


def test_one_after_the_other_is_both_at_once(
    tiny_bundle: Path, unet_file: Path, text_file: Path, tmp_path: Path
) -> None:
    one, two = (str(unet_file), 0.5), (str(text_file), -1.5)
    fuse_loras(tiny_bundle, [one], out=tmp_path / "one")
    later = fuse_loras(tmp_path / "one", [two], out=tmp_path / "later")
    both = fuse_loras(tiny_bundle, [one, two], out=tmp_path / "both")
    assert later.manifest == both.manifest
    assert contents(tmp_path / "later") == contents(tmp_path / "both")
    turned = fuse_loras(tiny_bundle, [two, one], out=tmp_path / "turned")
    assert turned.manifest.source.fingerprint != both.manifest.source.fingerprint
    assert turned.manifest.build_key != both.manifest.build_key
    assert [lora.scale for lora in both.manifest.source.loras] == [0.5, -1.5]


@pytest.fixture(scope="module")
def equal_bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pipeline and its bundle, in which equal weights are stored once, and small ones inline."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("equal") / "pipeline"
    pipe = tiny.PIPELINES["sd15"].make()
    pipe.unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 32), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None, attention_head_dim=2, cross_attention_dim=32,
    )  # fmt: skip
    for block in pipe.unet.down_blocks:  # of 256 bytes inline, and of 4096
        attention = block.attentions[0].transformer_blocks[0].attn1
        for layer in (attention.to_k, attention.to_v):
            layer.weight.data = attention.to_q.weight.data.clone()
    pipe.save_pretrained(folder)
    with tiny.only_samplers("ddim"):
        tiny.build("turbo", folder, folder.parent / "bundle", batch=tiny.FIXED)
    return folder, folder.parent / "bundle"


@pytest.mark.builds
def test_equal_weights_are_parted(equal_bundle: tuple[Path, Path], tmp_path: Path) -> None:
    folder, path = equal_bundle
    stored = read_layers(open_bundle(path))["unet"]
    blocks = [f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn1" for level in (0, 1)]
    made: dict[str, Any] = {}
    pipe = fused.pipeline(folder)
    for block in blocks:  # of three equal weights one stays, and two are changed each in its way
        made |= loras.change(pipe.unet, re.compile(rf"{re.escape(block)}\.to_[qk]$"))
        assert {len(stored[f"{block}.to_{end}"].constants) for end in "qkv"} == {2}
    file = fused.save({"unet": made}, tmp_path / "a.safetensors")
    result = fuse_loras(path, [(str(file), 1.0)], out=tmp_path / "out")
    bundle, before = open_bundle(tmp_path / "out"), open_bundle(path)
    assert {tensor.layer for tensor in result.changed} == {
        f"{block}.to_{end}" for block in blocks for end in "qk"
    }
    assert {(t.graph, t.tensor) for t in result.changed} == fused.differing(before, bundle)
    theirs = fused.fused(folder, tmp_path / "theirs", (file, 1.0))
    found = fused.graphs_differ(bundle, theirs)
    assert max(difference.relative for difference in found) < GRAPHS["fp32"]
    with tiny.only_samplers("ddim"):
        tiny.build("turbo", folder, tmp_path / "built", batch=tiny.FIXED, loras=[(str(file), 1.0)])
    assert contents(tmp_path / "out") == contents(tmp_path / "built")


def test_what_is_there_is_verified_too(
    tiny_bundle: Path, unet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, asked = [(str(unet_file), 0.5)], []
    fuse_loras(tiny_bundle, given, out=tmp_path / "out")
    monkeypatch.setattr(
        "tgate_export.build.fuse_loras._verified", lambda path, _progress: asked.append(path) or ()
    )
    assert fuse_loras(tiny_bundle, given, out=tmp_path / "out", verify=True).up_to_date
    assert asked == [tmp_path / "out"]


def test_plans_of_what_stays_come_along(
    bundle_with_plans: Path,  # noqa: F811
    unet_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    result = fuse_loras(bundle_with_plans, [(str(unet_file), 0.5)], out=out)
    (plans,) = plan_sets(out)
    assert plans.plans.keys() == {"sampler"}
    open_bundle(out)
    ((name, again),) = result.stale_plans.items()
    assert name == "set"
    text = in_python(again)
    assert f"loras=(('{unet_file}', 0.5),)" in text
    assert f"out=Path('{out}')" in text
    assert "library='tensorrt-rtx', compute_capabilities=('8.9',)" in text
    (before,) = plan_sets(bundle_with_plans)
    assert before.plans.keys() == {"full", "sampler"}
    # Both bundles live on: neither has a second name of the other's files.
    assert plans.file("sampler").stat().st_nlink == 1

    files, full = result.manifest.files, before.plans["full"]
    key = full.key.model_copy(
        update={
            "graph_sha256": files["graphs/full.onnx"].sha256,
            "weights_sha256": files["graphs/denoiser.weights"].sha256,
        }
    )
    shutil.copy(before.file("full"), plans.path / full.file)
    compiled = {
        **plans.plans,
        "full": full.model_copy(update={"key": key, "key_sha256": key.digest()}),
    }
    write_record(plans.path, compiled)
    for force in (False, True):
        again_made = fuse_loras(bundle_with_plans, [(str(unet_file), 0.5)], out=out, force=force)
        assert not again_made.stale_plans
        (kept,) = plan_sets(out)
        assert kept.plans == compiled


CALL = """
from tgate_export import fuse_loras
fuse_loras(sys.argv[1], [(sys.argv[2], 0.5)], out=sys.argv[3])
"""


def test_nothing_heavy_is_needed(tiny_bundle: Path, unet_file: Path, tmp_path: Path) -> None:
    block = f"import sys\nfor name in {(*HEAVY, 'safetensors')!r}: sys.modules[name] = None\n"
    run = subprocess.run(
        [sys.executable, "-c", block + CALL, tiny_bundle, unet_file, tmp_path / "out"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    open_bundle(tmp_path / "out")
