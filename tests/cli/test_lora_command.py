"""`tgate-export lora`: what it says, and what other commands make of its bundles."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from tests.bundle.test_plans import bundle as bundle_with_plans  # noqa: F401
from tests.support import loras
from tests.support.command import run
from tgate_export.build import verify_bundle
from tgate_export.common.errors import VerificationError
from tgate_export.verify import differences
from tgate_export.verify.reference import TrajectoryCase

Capture = pytest.CaptureFixture[str]
K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
QUERY = "text_model.encoder.layers.0.self_attn.q_proj"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A LoRA of a layer that `full` alone has, and of one of the text encoder."""
    pair = torch.full((2, 32), 0.1), torch.full((32, 2), 0.1)
    tensors = loras.peft("unet.", {K: pair}) | loras.peft("text_encoder.", {QUERY: pair})
    return loras.save(tensors, tmp_path / "fox.safetensors")


def test_what_it_says(capsys: Capture, tiny_bundle: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "fox"
    call = ("lora", tiny_bundle, f"{file}:-0.5", "--out", out)
    result = run(capsys, *call, "--list")
    assert result.code == 0
    assert f"Wrote {out} (" in result.err
    said = " ".join(result.err.split())
    assert "weights of layers that changed: 1 of text_encoder, 1 of unet." in said
    assert f"tgate-export generate {shlex.quote(str(out))}" in result.err
    first, second = result.out.splitlines()
    assert first.startswith("unet  ")
    assert first.split("  ")[1:3] == [K, "full"]
    assert second.startswith("text_encoder  ")

    assert f"{out} is up to date" in run(capsys, *call).err
    assert run(capsys, *call, "--json").json()["up_to_date"] is True
    report = run(capsys, *call, "--force", "--json").json()
    assert report["bundle"] == str(out)
    assert report["seconds"] > 0
    assert [lora["scale"] for lora in report["loras"]] == [-0.5]
    assert {(entry["component"], entry["graph"]) for entry in report["changed"]} == {
        ("unet", "full"), ("text_encoder", "text_encoder"),
    }  # fmt: skip
    assert all(entry["shape"] == [32, 32] for entry in report["changed"])
    assert f"lora       {file} scale -0.5" in run(capsys, "inspect", out).out.replace("\n", "")
    assert "choose another --out" in run(capsys, "lora", out, file, "--out", out).error()


def test_a_model_is_run_with_it(
    capsys: Capture, tiny_pipeline_dir: Path, tiny_bundle: Path, file: Path, tmp_path: Path
) -> None:
    """`run` and `build` find what they would have built."""
    out, scaled = tmp_path / "fox", f"{file}:-0.5"
    assert run(capsys, "lora", tiny_bundle, scaled, "--out", out).code == 0
    build = ("build", "--model", tiny_pipeline_dir, "--lora", scaled, "--out", out)
    assert "is up to date" in run(capsys, *build).err
    call = ("--bundle", out, "--prompt", "a fox", "--steps", 1, "--out", tmp_path / "x.png")
    for given in ((), ("--lora", scaled)):
        result = run(capsys, "run", tiny_pipeline_dir, *given, *call)
        assert result.code == 0
        assert "built" not in result.err


def test_verified(
    capsys: Capture, tiny_bundle: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = TrajectoryCase("pndm", steps=3, settings={"gate_step": 1})
    monkeypatch.setattr(verify_bundle, "trajectory_cases", lambda _manifest: (case,))
    out = tmp_path / "out" / "fox"
    call = ("lora", tiny_bundle, file, "--out", out, "--verify")
    monkeypatch.setattr(differences, "GRAPH_BOUNDS", {"fp32": 0.0})
    result = run(capsys, *call)
    assert result.code == VerificationError.exit_code
    assert "differs from PyTorch" in result.err.splitlines()[-1]
    assert not list(out.parent.iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(verify_bundle, "trajectory_cases", lambda _manifest: (case,))
    assert 0 < run(capsys, *call, "--json").json()["largest_relative_difference"] < 1e-4
    assert run(capsys, "verify", out).code == 0


def test_plans_are_compiled_again(
    capsys: Capture,
    bundle_with_plans: Path,  # noqa: F811
    file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    result = run(capsys, "lora", bundle_with_plans, file, "--out", tmp_path / "fox")
    (line,) = [line for line in result.err.splitlines() if "to compile them" in line]
    words = shlex.split(line.partition("to compile them: ")[2])
    assert words[:2] == ["tgate-export", "build"]
    assert words[words.index("--lora") + 1] == f"{file}:1.0"
    assert words[words.index("--out") + 1] == str(tmp_path / "fox")
    assert words[words.index("--target") + 1] == "tensorrt-rtx"
    assert words[words.index("--sm") + 1] == "8.9"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Missing argument 'FILE[:SCALE]...'"),
        (("no.safetensors", "--out", "x"), "lora no.safetensors: no such file"),
        (("{file}:much", "--out", "x"), "its scale must be a number, got 'much'"),
        (("{file}",), "Missing option '--out'"),
    ],
)
def test_wrong_usage(
    capsys: Capture, tiny_bundle: Path, file: Path, arguments: tuple[str, ...], reason: str
) -> None:
    given = [argument.format(file=file) for argument in arguments]
    result = run(capsys, "lora", tiny_bundle, *given)
    assert reason in result.error()
    assert result.code == 2
