"""What `build` is asked for in vain: one clear line, an exit code, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest

from tests.support.command import run
from tgate_export.build import build as build_module

Capture = pytest.CaptureFixture[str]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "bundle"


@pytest.fixture
def model(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A pipeline folder to damage."""
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "model"))


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--size", "15x16"], 2, "width 15 is not a multiple of 2: try 14 or 16"),
        (["--size", "16x17"], 2, "height 17 is not a multiple of 2: try 16 or 18"),
        (["--size", "1x16"], 2, "width 1 is not a multiple of 2: try 2"),
        (["--size", "14x16:16x16:20x16"], 2, "multiple of 4, as a dynamic size must be"),
        (["--size", "0x16"], 2, "width '0'"),
        (["--size", "-16x16"], 2, "width '-16'"),
        (["--size", "16x"], 2, "is not a whole number"),
        (["--size", "axb"], 2, "width 'a'"),
        (["--size", "32x32:16x16:64x64"], 2, "rising order"),
        (["--gate-step", "0"], 2, "gate_step must be at least 1, got 0"),
        (["--gate-step", "-1"], 2, "gate_step must be at least 1, got -1"),
        (["--sp-interval", "0"], 2, "sp_interval must be at least 1, got 0"),
        (["--warm-up", "11"], 2, "give a gate_step of at least 11, or a warm_up of at most 10"),
        (["--gate-step", "many"], 2, "not a valid integer"),
        (["--batch", "1:1:32"], 2, "batch may be 31 at most"),
        (["--batch", "0"], 2, "--batch '0'"),
        (["--batch", "3:2:4"], 2, "rising order"),
        (["--precision", "int4"], 2, "'int4' is not one of"),
        (["--target", "coreml"], 2, "'coreml' is not"),
        (["--weights", "stolen"], 2, "'stolen' is not one of"),
        (["--frobnicate"], 2, "No such option"),
    ],
)
def test_option_out_of_range(
    capsys: Capture, tiny_pipeline_dir: Path, out: Path, options: list[str], code: int, reason: str
) -> None:
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out, *options)
    assert reason in result.error()
    assert result.code == code
    assert not out.parent.exists()


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("shape", 2, "did you mean shapes"),
        ("sd51", 2, "did you mean sd21 or sd15"),
        ("/no/such/folder", 2, "no such folder"),
        ("", 1, "is not a diffusers pipeline"),
    ],
)
def test_unknown_model(capsys: Capture, out: Path, name: str, code: int, reason: str) -> None:
    result = run(capsys, "build", "--model", name, "--out", out)
    assert reason in result.error()
    assert result.code == code
    assert not out.parent.exists()


def test_no_model(capsys: Capture) -> None:
    assert "Missing option '--model'" in run(capsys, "build").error()


def other_class(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", _class_name=name)


def no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def inpainting(folder: Path) -> None:
    edit(folder / "unet" / "config.json", in_channels=9)


def pickled(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def truncated(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def no_weights(folder: Path) -> None:
    (folder / "text_encoder" / "model.safetensors").unlink()


def no_component(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def no_levels(folder: Path) -> None:
    edit(folder / "vae" / "config.json", block_out_channels=None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (no_index, "is not a diffusers pipeline: it has no model_index.json"),
        (other_class("FluxPipeline"), "T-GATE does not apply"),
        (other_class("StableDiffusion3Pipeline"), "T-GATE does not apply"),
        (other_class("StableDiffusionInpaintPipeline"), "not supported"),
        (other_class("StableDiffusionXLPipeline"), "lacks the component text_encoder_2/"),
        (inpainting, "inpainting"),
        (pickled, "diffusion_pytorch_model.bin"),
        (truncated, "is truncated: "),
        (no_weights, "has no safetensors weights"),
        (no_component, "lacks the component scheduler/"),
        (no_levels, "vae/config.json has no block_out_channels"),
    ],
)
def test_unusable_model(
    capsys: Capture, model: Path, out: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(model)
    result = run(capsys, "build", "--model", model, "--out", out)
    assert reason in result.error()
    assert result.code == 1
    assert not out.parent.exists()


def test_single_file(capsys: Capture, tmp_path: Path, out: Path) -> None:
    (tmp_path / "v1-5.ckpt").write_bytes(b"never read")
    result = run(capsys, "build", "--model", tmp_path / "v1-5.ckpt", "--out", out)
    assert "v1-5.ckpt is a pickle, which is never loaded" in result.error()
    assert not out.parent.exists()


def test_options_of_a_file(capsys: Capture, tmp_path: Path, out: Path) -> None:
    (tmp_path / "v1-5.safetensors").write_bytes(b"no safetensors")
    model = tmp_path / "v1-5.safetensors"
    for options, says in (
        (["--config", "nothing"], "v1-5.safetensors is not a safetensors file: download the model"),
        (["--vae", "nothing"], "v1-5.safetensors is not a safetensors file: download the model"),
        (["--weights", "random"], "is a file: leave --weights out"),
    ):
        result = run(capsys, "build", "--model", model, *options, "--out", out)
        assert says in result.error()
    result = run(capsys, "build", "--model", "shapes", "--vae", "x", "--out", out)
    assert result.error() == "error: vae x is neither a file nor a folder"
    assert result.code == 2
    assert not out.parent.exists()


def test_no_network(capsys: Capture, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> str:
        raise OSError("Network is unreachable\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for name in ("sd15", "someone/model"):
        result = run(capsys, "build", "--model", name, "--out", out)
        assert "(Network is unreachable)" in result.error()
        assert not out.parent.exists()


def test_folder_that_holds_something_else(
    capsys: Capture, tiny_pipeline_dir: Path, out: Path
) -> None:
    out.mkdir(parents=True)
    (out / "thesis.txt").write_text("years of work")
    for force in ([], ["--force"]):
        result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out, *force)
        assert "holds something else than a bundle" in result.error()
    assert os.listdir(out.parent) == [out.name]
    assert os.listdir(out) == ["thesis.txt"]


def test_out_below_a_file(capsys: Capture, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", tmp_path / "file" / "x")
    assert f"{tmp_path / 'file'} is not a folder" in result.error()
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "choose another --out"),
        (errno.EROFS, "choose another --out"),
        (errno.EIO, "OSError"),
    ],
)
def test_disk_that_fails_in_the_middle(
    capsys: Capture, tiny_pipeline_dir: Path, out: Path, monkeypatch: pytest.MonkeyPatch,
    code: int, reason: str,
) -> None:  # fmt: skip
    def half(*arguments: object) -> None:
        staging = next(a for a in arguments if isinstance(a, Path))
        (staging / "graphs").mkdir()
        (staging / "graphs" / "full.onnx").write_bytes(b"half")
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(build_module, "assemble", half)
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out)
    assert reason in result.err.splitlines()[-1]
    assert result.code == 1
    assert os.listdir(out.parent) == []


def test_missing_packages_are_named(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from tgate_export.cli import _console

    monkeypatch.setattr(_console, "find_spec", lambda name: None if name == "torch" else name)
    message = run(capsys, "build", "--model", "shapes").error()
    assert "building needs torch: pip install" in message


def test_debug_shows_where(capsys: Capture, out: Path) -> None:
    from tgate_export.cli import main
    from tgate_export.common.errors import InvalidRequestError

    with pytest.raises(InvalidRequestError):
        main(["--debug", "build", "--model", "shape", "--out", str(out)])
    assert capsys.readouterr().err == ""
