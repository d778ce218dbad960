"""`build`, `inspect` and `verify` on a bundle that is there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.bundle.test_integrity import change_byte, remove
from tests.support.command import run
from tests.support.hostile import relist
from tgate_export.build import assembly, verify_bundle
from tgate_export.bundle.integrity import open_bundle
from tgate_export.runtime.backends.base import Backend
from tgate_export.verify import differences, graphs, trajectories
from tgate_export.verify.reference import TrajectoryCase

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def short_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run of three steps instead of sixteen of twenty-five."""
    case = TrajectoryCase("pndm", steps=3, settings={"gate_step": 1})
    monkeypatch.setattr(verify_bundle, "trajectory_cases", lambda _manifest: (case,))


def test_build_of_the_same_thing_is_up_to_date(
    capsys: Capture, tiny_pipeline_dir: Path, tiny_bundle_copy: Path
) -> None:
    (tiny_bundle_copy.parent / ".bundle.building-x.old").mkdir()  # of a build killed at its end
    before = tiny_bundle_copy.stat().st_ino
    arguments = ("build", "--model", tiny_pipeline_dir, "--out", tiny_bundle_copy)
    result = run(capsys, *arguments)
    assert result.code == 0
    assert "is up to date" in result.err
    assert result.out == ""
    report = run(capsys, *arguments, "--json").json()
    assert report["up_to_date"] is True
    assert report["bundle"] == str(tiny_bundle_copy)
    assert report["bytes"] == sum(
        file.bytes for file in open_bundle(tiny_bundle_copy).manifest.files.values()
    )
    assert tiny_bundle_copy.stat().st_ino == before
    assert os.listdir(tiny_bundle_copy.parent) == [tiny_bundle_copy.name]


def test_build_again_by_force(
    capsys: Capture, tiny_pipeline_dir: Path, tiny_bundle: Path, tiny_bundle_copy: Path
) -> None:
    change_byte(tiny_bundle_copy)
    (tiny_bundle_copy / "notes.txt").write_text("mine")
    arguments = ("build", "--model", tiny_pipeline_dir, "--out", tiny_bundle_copy)
    assert "replace everything with --force" in run(capsys, *arguments).error()
    report = run(capsys, *arguments, "--force", "--json").json()
    assert report["up_to_date"] is False
    assert 0 < report["largest_relative_difference"] < 1e-4  # the bound of all but pictures
    built, first = open_bundle(tiny_bundle_copy).manifest, open_bundle(tiny_bundle).manifest
    # The same source gives the same bytes; without the cache, see tests/e2e/test_build_cache.py.
    for name in ("graphs/denoiser.weights", "graphs/full.onnx", "graphs/gated.onnx"):
        assert built.files[name] == first.files[name]
    assert os.listdir(tiny_bundle_copy.parent) == [tiny_bundle_copy.name]


@pytest.mark.usefixtures("tiny_bundle")  # whose graphs are in the cache
def test_build_that_differs_from_pytorch_leaves_nothing(
    capsys: Capture, tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(differences, "GRAPH_BOUNDS", {"fp32": 0.0})
    monkeypatch.setattr(assembly, "is_compared", lambda _unit: False)
    out = tmp_path / "out" / "bundle"
    result = run(capsys, "build", "--model", tiny_pipeline_dir, "--out", out)
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "differs from PyTorch" in last
    assert os.listdir(out.parent) == []


def test_inspect(capsys: Capture, tiny_bundle: Path) -> None:
    result = run(capsys, "inspect", tiny_bundle)
    assert result.code == 0
    for text in ("full", "gated", "cross_cache_0", "16x16", "denoiser.weights"):
        assert text in result.out
    assert "2 cache tensors for 7 attention modules" in result.out


def test_inspect_json_is_the_manifest(capsys: Capture, tiny_bundle: Path) -> None:
    report = run(capsys, "inspect", tiny_bundle, "--json").json()
    assert report.pop("plans") == {}
    assert report == json.loads((tiny_bundle / "manifest.json").read_text())
    gated = {tensor["name"] for tensor in report["graphs"]["gated"]["inputs"]}
    assert gated == {
        "sample", "timestep", "guidance_scale", "cache_blend", "guidance_carry", "cross_cache_0",
        "cross_cache_1", "guidance_delta",
    }  # fmt: skip
    assert report["graphs"]["gated"]["parameters"] < report["graphs"]["full"]["parameters"]


def test_inspect_shows_names_with_brackets(capsys: Capture, tiny_bundle_copy: Path) -> None:
    path = tiny_bundle_copy / "manifest.json"
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["source"]["model"] = "/models/[/v1] :smile:"
    path.write_text(json.dumps(manifest))
    result = run(capsys, "inspect", tiny_bundle_copy)
    assert "/models/[/v1] :smile:" in result.out


def test_inspect_shows_what_terminals_obey(capsys: Capture, tiny_bundle_copy: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["family"] = "\x1b]0;title\x07\x1b[2J [bold red]markup[/] [link=file:///x]y[/link]"
        manifest["caches"]["cross_cache_0"]["layers"][0] = "\x1b[31mred \\[x [/]"
        manifest["parameters"]["gate_step"]["help"] = manifest["name"] = "\x9b31m[red]"

    relist(tiny_bundle_copy, edit)
    result = run(capsys, "inspect", tiny_bundle_copy)
    assert result.code == 0
    assert "\\x1b[2J [bold red]markup[/] [link=file:///x]y[/link]" in result.out
    assert "\\x1b[31mred \\[x [/]" in result.out
    assert all(line.isprintable() for line in result.out.splitlines())
    assert len(result.out.splitlines()) == len(result.out.split("\n")) - 1


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_damaged_bundle(capsys: Capture, tiny_bundle_copy: Path, command: str) -> None:
    remove(tiny_bundle_copy)
    result = run(capsys, command, tiny_bundle_copy)
    assert "tokenizer.json is missing" in result.error()
    assert result.code == 1


def test_verify_sees_a_changed_byte(capsys: Capture, tiny_bundle_copy: Path) -> None:
    file = change_byte(tiny_bundle_copy)
    message = run(capsys, "verify", tiny_bundle_copy).error()
    assert str(file) in message
    assert "sha256 differs" in message


@pytest.mark.usefixtures("short_verification")
@pytest.mark.parametrize("backend", [None, "openvino", "onnxruntime:cpu"])
def test_verify_holds(
    capsys: Capture, tiny_bundle: Path, backend: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run_on = graphs.run_on

    def watched(chosen: Backend, *arguments: Any) -> Any:
        ran.append(chosen.name)
        return run_on(chosen, *arguments)

    monkeypatch.setattr(graphs, "run_on", watched)
    if backend == "openvino":
        pytest.importorskip("openvino")
    options = ["--backend", backend] if backend else []
    report = run(capsys, "verify", tiny_bundle, *options, "--json").json()
    assert set(ran) == ({backend} if backend else set())  # else as the graphs are written
    assert report["holds"] is True
    assert {row["graph"] for row in report["differences"]} == {
        "text_encoder", "full", "gated", "vae_decoder", "pndm, gate 1 of 3",
    }  # fmt: skip
    for row in report["differences"]:
        assert row["relative"] <= row["bound"] <= 1e-3


@pytest.mark.usefixtures("short_verification")
def test_verify_that_fails_names_graph_and_tensor(
    capsys: Capture, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs hold; the trajectory's bound is 0, which no two programs meet.
    monkeypatch.setattr(trajectories, "TRAJECTORY_BOUNDS", {"fp32": 0.0})
    result = run(capsys, "verify", tiny_bundle)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(
        "error: pndm, gate 1 of 3: latents differs from PyTorch by "
    )
    assert result.out.count("BROKEN") == 1
    # Embeddings, noise twice, two caches of attention and one of guidance, images.
    assert result.out.count("ok") == 7


def test_verify_of_another_source(
    capsys: Capture, tiny_bundle: Path, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "other"))
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text() + "\n")
    result = run(capsys, "verify", tiny_bundle, "--source", other)
    assert "is not what the bundle was built from" in result.err.splitlines()[-1]
    assert result.code == 1
