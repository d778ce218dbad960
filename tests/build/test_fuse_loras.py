"""A bundle that got LoRA files later is that of the model with the LoRA fused by diffusers."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.bundle.test_integrity import change_byte
from tests.bundle.test_plans import bundle as bundle_with_plans  # noqa: F401
from tests.oracle.families import diffusers_run
from tests.support import fused, loras, tiny
from tests.support.hostile import relist
from tests.support.loras import ATTENTION, MOST
from tests.support.once import made_once
from tests.test_import_rule import HEAVY
from tgate_export import TGatePipeline, build_bundle, fuse_loras
from tgate_export.bundle.integrity import bundle_files, open_bundle
from tgate_export.bundle.layers_file import read_layers
from tgate_export.bundle.plans import plan_sets, write_record
from tgate_export.common.errors import BundleError, InvalidRequestError, ModelError, TGateError
from tgate_export.common.hints import in_python
from tgate_export.export.weights import WeightFile

# How far graphs may be from PyTorch, which computes in fp32: 4e-6 was measured, and 2e-3 in fp16. A
# LoRA that is left out changes outputs by 0.1 and more.
GRAPHS = {"fp32": 2e-5, "fp16": 1e-2}
# How far weights may be from PEFT's, which in fp16 rounds the product of a LoRA before it is added.
WEIGHTS = {"fp32": 1e-6, "fp16": 1e-3}


def contents(bundle: Path) -> dict[str, bytes]:
    return {name: (bundle / name).read_bytes() for name in bundle_files(bundle)}


@pytest.fixture(scope="module")
def unet_file(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/build/test_lora.py builds with: the graphs may be in the tests' cache."""
    made = loras.change(fused.pipeline(tiny_pipeline_dir).unet, MOST)
    file = tmp_path_factory.mktemp("lora") / "fox.safetensors"
    return loras.save(loras.kohya("lora_unet_", made, 2.0), file)


@pytest.fixture(scope="module")
def text_file(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the text encoder, and of a few layers of the UNet."""
    made = fused.changes(fused.pipeline(tiny_pipeline_dir), ATTENTION, rank=2, seed=1)
    made["unet"] = dict(list(made["unet"].items())[:3])
    return fused.save(made, tmp_path_factory.mktemp("lora") / "text.safetensors")


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


def pair(rank: int = 2, inputs: int = 32, outputs: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(rank, inputs), torch.ones(outputs, rank)


K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


def unknown_layer(file: Path) -> None:
    loras.save(loras.peft("unet.", {"no_such_layer": pair()}), file)


def other_width(file: Path) -> None:
    loras.save(loras.peft("unet.", {K: pair(inputs=48)}), file)


def other_component(file: Path) -> None:
    layer = "text_model.encoder.layers.0.self_attn.q_proj"
    loras.save(loras.peft("text_encoder_2.", {layer: pair()}), file)


def not_a_number(file: Path) -> None:
    down, up = pair()
    loras.save(loras.peft("unet.", {K: (down * float("nan"), up)}), file)


def too_large(file: Path) -> None:
    down, up = pair()
    loras.save(loras.peft("unet.", {K: (down * 1e30, up * 1e30)}), file)


def no_rank(file: Path) -> None:
    loras.save(loras.peft("unet.", {K: pair(rank=0)}), file)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (unknown_layer, "has no layer no_such_layer (1 of 1 are not there)"),
        (other_width, "reads text of width 48, and the model's has 32"),
        (other_component, "it changes text_encoder_2, and Stable Diffusion 1.x and 2.x has none"),
        (not_a_number, f"weights of {K} in unet are infinite or no numbers"),
        (too_large, f"weights of {K} in unet are infinite or no numbers"),
        (no_rank, "has no rank in"),
    ],
)
def test_files_that_do_not_fit(
    tiny_bundle: Path, tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    """They are refused as by a build, and nothing is left of the new bundle."""
    file = tmp_path / "mine.safetensors"
    write(file)
    with pytest.raises(ModelError) as caught:
        fuse_loras(tiny_bundle, [(str(file), 1.0)], out=tmp_path / "out" / "bundle")
    assert reason in str(caught.value)
    assert "mine.safetensors" in str(caught.value)
    assert not list((tmp_path / "out").glob("*"))


def forget_layers(bundle: Path) -> None:
    """As of a version that wrote no such files."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for file in bundle.glob("graphs/*.layers.json"):
        del manifest["files"][f"graphs/{file.name}"]
        file.unlink()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def rename_constant(bundle: Path) -> None:
    file = bundle / "graphs" / "denoiser.layers.json"
    file.write_text(file.read_text().replace('"denoiser.conv_in.weight"', '"other"'))
    relist(bundle)


def rename_graph(bundle: Path) -> None:
    file = bundle / "graphs" / "denoiser.layers.json"
    file.write_text(file.read_text().replace('"gated"', '"other"'))
    relist(bundle)


def lose_a_shape(bundle: Path) -> None:
    file = bundle / "graphs" / "denoiser.layers.json"
    file.write_text(file.read_text().replace('"shape":[32,4,3,3],', ""))
    relist(bundle)


def turn_a_layer(bundle: Path) -> None:
    file = bundle / "graphs" / "denoiser.layers.json"
    conv = '"denoiser.conv_in.weight","transposed":'
    file.write_text(file.read_text().replace(f"{conv}false", f"{conv}true"))
    relist(bundle)


def share_a_constant(bundle: Path) -> None:
    file = bundle / "graphs" / "denoiser.layers.json"
    text = file.read_text().replace("denoiser.conv_in.weight", "denoiser.conv_out.weight")
    file.write_text(text)
    relist(bundle)


def overlap(bundle: Path) -> None:
    """Weights of `gated` begin four bytes before those of `full`: as many as there are files."""
    file = bundle / "graphs" / "gated.onnx"
    model = onnx.load(file, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset" and int(entry.value):
                entry.value = str(int(entry.value) - 4)
    onnx.save(model, file)
    relist(bundle)


def other_family(bundle: Path) -> None:
    relist(bundle, lambda manifest: manifest.update(family="pixart"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (forget_layers, r"does not say where its weights are.*build_bundle\(.*loras=\(\(.*0\.5\)"),
        (rename_constant, "has no 'other', which is to be changed: build the bundle again"),
        (rename_graph, "names graph 'other', which is not there: build the bundle again"),
        (lose_a_shape, r"layers\.unet\.conv_in\.shape: Field required: build the bundle again"),
        (turn_a_layer, "'denoiser.conv_in.weight' of a graph is no weight .*: build the bundle"),
        (share_a_constant, "has two layers for 'denoiser.conv_out.weight' of 'full': build"),
        (other_family, "LoRA is for Stable Diffusion and SDXL, and this is a bundle of PixArt"),
        (change_byte, r"was changed after the build \(its sha256 differs\): build the bundle"),
    ],
)
def test_bundles_that_take_none(
    tiny_bundle_copy: Path, unet_file: Path, tmp_path: Path,
    damage: Callable[[Path], None], reason: str,
) -> None:  # fmt: skip
    damage(tiny_bundle_copy)
    with pytest.raises(TGateError, match=reason):
        fuse_loras(tiny_bundle_copy, [(str(unet_file), 0.5)], out=tmp_path / "out" / "bundle")
    assert not list((tmp_path / "out").glob("*"))


def test_weights_that_overlap(tiny_bundle_copy: Path, text_file: Path, tmp_path: Path) -> None:
    """They would become as many times as large."""
    overlap(tiny_bundle_copy)
    with pytest.raises(BundleError, match=r"denoiser\.weights has weights that overlap: build the"):
        fuse_loras(tiny_bundle_copy, [(str(text_file), 0.5)], out=tmp_path / "out" / "bundle")
    assert not list((tmp_path / "out").glob("*"))


def test_requests_that_make_no_sense(tiny_bundle: Path, unet_file: Path, tmp_path: Path) -> None:
    one = (str(unet_file), 0.5)
    fuse_loras(tiny_bundle, [one], out=tmp_path / "one")
    elsewhere = shutil.copy(unet_file, tmp_path / "b.safetensors")

    def refused(bundle: Path, given: Any, out: Path) -> str:
        with pytest.raises(InvalidRequestError) as caught:
            fuse_loras(bundle, given, out=out)
        return str(caught.value)

    out = tmp_path / "out"
    assert "no LoRA files" in refused(tiny_bundle, [], out)
    assert "is given twice: add up its scales" in refused(tiny_bundle, [one, one], out)
    for file in (one[0], str(elsewhere)):
        message = refused(tmp_path / "one", [(file, 2.0)], out)
        assert f"is in {tmp_path / 'one'} already, with scale 0.5" in message
    assert "is the bundle itself" in refused(tmp_path / "one", [one], tmp_path / "one")
    assert "is inside the bundle" in refused(
        tmp_path / "one", [one], tmp_path / "one" / "graphs" / "x"
    )
    inner = shutil.copytree(tmp_path / "one", tmp_path / "outer" / "inner")
    assert "holds the bundle" in refused(inner, [one], tmp_path / "outer")
    open_bundle(inner)
    assert "finite number" in refused(tiny_bundle, [(one[0], float("inf"))], out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        fuse_loras(tiny_bundle, [one], out=tmp_path / "mine")
    assert not out.exists()


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


def full_disk(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*_arguments: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fail", "error"), [(full_disk, TGateError), (interrupted, KeyboardInterrupt)]
)
def test_what_does_not_end_leaves_nothing(
    tiny_bundle: Path, unet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fail: Callable[..., None], error: type[BaseException],
) -> None:  # fmt: skip
    before = contents(tiny_bundle)
    monkeypatch.setattr(WeightFile, "store", fail)
    with pytest.raises(error):
        fuse_loras(tiny_bundle, [(str(unet_file), 0.5)], out=tmp_path / "out" / "bundle")
    assert not list((tmp_path / "out").glob("*"))
    assert contents(tiny_bundle) == before


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
