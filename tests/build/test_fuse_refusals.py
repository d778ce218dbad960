"""Files, bundles and calls of `fuse_loras` that make no sense leave nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tests.bundle.test_integrity import change_byte
from tests.bundle.test_plans import bundle as bundle_with_plans  # noqa: F401
from tests.support import loras
from tests.support.fused import contents
from tests.support.hostile import relist
from tgate_export import fuse_loras
from tgate_export.bundle.integrity import open_bundle
from tgate_export.common.errors import BundleError, InvalidRequestError, ModelError, TGateError
from tgate_export.export.weights import WeightFile


def pair(rank: int = 2, inputs: int = 32, outputs: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(rank, inputs), torch.ones(outputs, rank)


CONV = "denoiser.conv_in.weight"
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


def edit(old: str, new: str) -> Callable[[Path], None]:
    """Return what changes a text in the file that says where the denoiser's layers are."""

    def damage(bundle: Path) -> None:
        file = bundle / "graphs" / "denoiser.layers.json"
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        relist(bundle)

    return damage


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
        (
            edit(f'"{CONV}"', '"other"'),
            "has no 'other', which is to be changed: build the bundle again",
        ),
        (
            edit('"gated"', '"other"'),
            "names graph 'other', which is not there: build the bundle again",
        ),
        (
            edit('"shape":[32,4,3,3],', ""),
            r"layers\.unet\.conv_in\.shape: Field required: build the bundle again",
        ),
        (
            edit(f'"{CONV}","transposed":false', f'"{CONV}","transposed":true'),
            "'denoiser.conv_in.weight' of a graph is no weight .*: build the bundle",
        ),
        (
            edit(CONV, "denoiser.conv_out.weight"),
            "has two layers for 'denoiser.conv_out.weight' of 'full': build",
        ),
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
