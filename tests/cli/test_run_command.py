"""`run`: from nothing to a picture, and what is built is built once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support import checkpoints, loras, tiny
from tests.support.command import run
from tests.test_import_rule import python
from tgate_export.build import build as build_module
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Range
from tgate_export.common.errors import TGateError
from tgate_export.families.source import resolve_source

Capture = pytest.CaptureFixture[str]
CALL = ("--prompt", "a circle", "--steps", 2, "--seed", 3, "--backend", "onnxruntime:cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (folder := tmp_path / "project").mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def model(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    """A model's folder to change."""
    return Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "mine"))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of builds, none of which builds anything."""
    calls: list[dict[str, Any]] = []

    def build(model: str, **arguments: Any) -> None:
        arguments.pop("progress")
        calls.append({"model": model, **arguments})
        raise TGateError("as far as this test goes")

    monkeypatch.setattr(build_module, "build_bundle", build)
    return calls


def placed(bundle: Path, folder: Path, **source: Any) -> None:
    """Copy a bundle, and say that it was built from something else."""
    shutil.copytree(bundle, folder)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["source"] |= source
    path.write_text(json.dumps(content))


def picture(capsys: Capture, *arguments: object) -> bytes:
    """What a command that reports JSON and nothing else on standard output wrote."""
    (file,) = run(capsys, *arguments, *CALL, "--json").json()["images"]
    return Path(file).read_bytes()


def test_a_first_run_builds_and_a_second_does_not(
    capsys: Capture, tiny_bundle: Path, tiny_pipeline_dir: Path, project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    built = project / "engines" / tiny_pipeline_dir.name
    result = run(capsys, "run", tiny_pipeline_dir, *CALL)
    assert result.code == 0, result.err
    assert result.out == ""
    first, *_, before_last, last = result.err.splitlines()
    assert first.startswith(
        f"engines/{built.name} is not built yet. Building takes about 1 minute on two cores"
    )
    assert f"Built engines/{built.name} (" in before_last
    assert last.startswith("Wrote x.png (seed 3, onnxruntime:cpu): ")
    made = (project / "x.png").read_bytes()
    assert Image.open(project / "x.png").text["parameters"].startswith("a circle\nSteps: 2, ")
    # What is built is what `build` builds, and generated is what `generate` generates.
    assert read_manifest(built).build_key == read_manifest(tiny_bundle).build_key
    assert picture(capsys, "generate", built) == made

    monkeypatch.setattr(build_module, "build_bundle", None)
    for what in (tiny_pipeline_dir, built, built.relative_to(project), built.name):
        (project / "x.png").unlink()
        assert picture(capsys, "run", what) == made


def test_a_second_run_needs_no_torch(
    capsys: Capture, tiny_bundle: Path, tiny_pipeline_dir: Path, project: Path
) -> None:
    code = "from tgate_export.cli import main; main(sys.argv[1:])"
    python(code, "run", tiny_pipeline_dir, "--bundle", tiny_bundle, *CALL)
    made = (project / "x.png").read_bytes()
    assert made == picture(capsys, "generate", tiny_bundle)
    assert os.listdir(project) == ["x.png"]


def test_json_is_that_of_generate(
    capsys: Capture, tiny_bundle: Path, tiny_pipeline_dir: Path, project: Path
) -> None:
    found, expected = (
        run(capsys, *arguments, *CALL, "--json").json()
        for arguments in (
            ("run", tiny_pipeline_dir, "--bundle", tiny_bundle), ("generate", tiny_bundle)
        )
    )  # fmt: skip
    del found["timings"], expected["timings"]
    assert found == expected


@pytest.mark.usefixtures("project", "builds")
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["shape"], 2, "unknown model 'shape': did you mean shapes?"),
        (["./nothing"], 2, "./nothing: no such folder; give a diffusers folder"),
        (["engines/shapes"], 2, "no such folder; if shapes is a model, `tgate-export run shapes`"),
        (["file.safetensors"], 1, "file.safetensors is not a safetensors file: download the"),
        (["."], 1, "is not a diffusers pipeline"),
        (["shapes", "--bundle", "file.safetensors/x"], 1, "as far as this test goes"),
    ],
)
def test_what_is_no_model(capsys: Capture, arguments: list[str], code: int, says: str) -> None:
    Path("file.safetensors").touch()
    result = run(capsys, "run", *arguments, *CALL)
    assert says in result.err.splitlines()[-1]
    assert result.code == code
    assert os.listdir() == ["file.safetensors"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--cache-blend", "3"], "cache_blend must be 0 to 2, got 3"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--size", "64x"], "is not a whole number"),
        (["--size", "63"], "width 63 is not a multiple of"),
        (["--out", "nowhere/x.png"], "the folder nowhere does not exist"),
        (["--out", "x.gif"], "a picture must end in .png"),
        (["--image", "nothing.png"], "image nothing.png does not exist"),
        (["--strength", "2"], "strength must be above 0 and at most 1, got 2"),
        (["--refiner-start", "0.5"], "--refiner-start is for --refiner BUNDLE"),
    ],
)
def test_wrong_calls_are_found_before_a_build(
    capsys: Capture, builds: list[Any], options: list[str], says: str
) -> None:
    result = run(capsys, "run", "shapes", *CALL, *options)
    assert says in result.error()
    assert result.code == 2
    assert "--prompt is missing" in run(capsys, "run", "shapes").error()
    assert not builds
    assert os.listdir() == []


@pytest.mark.usefixtures("project")
def test_refiners_are_looked_at_before_a_build(
    capsys: Capture, builds: list[Any], tmp_path: Path, tiny_bundle: Path, tiny_pipeline_dir: Path
) -> None:
    tiny.save("sdxl-refiner", tmp_path / "refiner")
    alone = run(capsys, "run", tmp_path / "refiner", *CALL)
    assert "a refiner goes on from a picture: give --image" in alone.error()
    refined = ("run", tiny_pipeline_dir, *CALL, "--refiner")
    assert "nothing" in run(capsys, *refined, "nothing").error()
    wide = Path(shutil.copytree(tiny_bundle, tmp_path / "wide"))
    content = json.loads((wide / "manifest.json").read_text())
    content["latents"]["downscale"] *= 2
    (wide / "manifest.json").write_text(json.dumps(content))
    assert "has other latents than the bundle that" in run(capsys, *refined, wide).error()
    assert not builds
    run(capsys, *refined, tiny_bundle)
    assert len(builds) == 1
    # Nor is what was built from other files built again for nothing.
    placed(tiny_bundle, Path("engines") / tiny_pipeline_dir.name, model=str(tiny_pipeline_dir))
    Image.new("RGB", (16, 16)).save("begin.png")
    wrong = run(capsys, *refined, wide, "--image", "begin.png")
    assert "has other latents than the bundle that" in wrong.error()
    assert len(builds) == 1


@pytest.mark.usefixtures("project")
def test_ctrl_c_leaves_nothing(
    capsys: Capture, tiny_pipeline_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_request: object, staging: Path, *_rest: object) -> None:
        (staging / "half").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "assemble", interrupted)
    result = run(capsys, "run", tiny_pipeline_dir, *CALL)
    assert result.code == 130
    assert result.err.endswith("error: interrupted\n")
    assert not [path for path in Path().rglob("*") if path.is_file() and path.stat().st_size]
    assert not list(Path().rglob("half"))
    assert not list(Path("engines").glob("[!.]*"))  # but the lock by which builds wait


def test_a_bundle_is_no_place_for_another(
    capsys: Capture, tiny_bundle: Path, project: Path, builds: list[Any]
) -> None:
    result = run(capsys, "run", tiny_bundle, "--bundle", "x", *CALL)
    assert "--bundle is for a model" in result.error()
    placed(tiny_bundle, project / "engines" / "shapes")
    message = run(capsys, "run", "shapes", *CALL).error()
    model = read_manifest(tiny_bundle).source.model
    assert f"engines/shapes holds a bundle of {model}, not of shapes" in message
    assert "give engines/shapes itself to use it, or another --bundle" in message
    placed(tiny_bundle, project / "other", kind="random", model="shapes")
    message = run(capsys, "run", "shapes", *CALL, "--bundle", "other").error()
    assert "other holds a bundle of shapes with random weights, not of shapes" in message
    assert not builds


def test_what_to_do_is_said_in_options_of_this_command(
    capsys: Capture, tiny_pipeline_dir: Path, project: Path
) -> None:
    (project / "full").mkdir()
    (project / "full" / "file").touch()
    result = run(capsys, "run", tiny_pipeline_dir, "--bundle", "full", *CALL)
    assert result.err.splitlines()[-1].endswith("choose another --bundle, or empty it")
    (project / "full" / "file").rename(project / "full" / "manifest.json")
    message = run(capsys, "run", tiny_pipeline_dir, "--bundle", "full", *CALL).error()
    assert "full/manifest.json" in message


@pytest.mark.usefixtures("project")
def test_sizes_have_bundles_of_their_own(
    capsys: Capture, tiny_dynamic_bundle: Path, builds: list[Any], tiny_pipeline_dir: Path
) -> None:
    name = tiny_pipeline_dir.name
    side = Range(min=32, opt=32, max=32)
    run(capsys, "run", tiny_pipeline_dir, "--size", 32, *CALL)
    assert builds.pop() == {
        "model": str(tiny_pipeline_dir), "out": Path(f"engines/{name}-32x32"),
        "size": (side, side), "image_to_image": False,
    }  # fmt: skip
    # One whose size is dynamic does as well.
    placed(tiny_dynamic_bundle, Path("engines") / name)
    report = run(capsys, "run", tiny_pipeline_dir, "--size", 32, *CALL, "--json").json()
    assert (report["width"], report["height"]) == (32, 32)
    run(capsys, "run", tiny_pipeline_dir, "--size", 64, *CALL)
    assert builds.pop()["out"] == Path(f"engines/{name}-64x64")


@pytest.mark.usefixtures("project")
def test_a_checkpoint_in_one_file(
    capsys: Capture, tiny_bundle: Path, tiny_pipeline_dir: Path, builds: list[Any], tmp_path: Path
) -> None:
    parts = checkpoints.parts_of(tiny_pipeline_dir)
    file = checkpoints.save(checkpoints.sd1(parts), tmp_path / "mine.safetensors")
    vae = checkpoints.save(parts["vae"], tmp_path / "vae.safetensors")
    of_file = ("--config", tiny_pipeline_dir)
    run(capsys, "run", file, *of_file, *CALL)
    assert builds.pop() == {
        "model": str(file), "config": str(tiny_pipeline_dir), "out": Path("engines/mine"),
        "size": None, "image_to_image": False,
    }  # fmt: skip
    record = resolve_source(str(file), config=str(tiny_pipeline_dir)).record()
    placed(tiny_bundle, Path("engines/mine"), **record.model_dump())
    # The bundle knows what it was built with.
    assert run(capsys, "run", file, *CALL).code == 0
    assert not builds
    run(capsys, "run", file, "--vae", vae, *CALL)
    again = builds.pop()
    assert (again["config"], again["vae"]) == (str(tiny_pipeline_dir), str(vae))
    error = run(capsys, "run", tiny_bundle, "--vae", vae, *CALL)
    assert "--vae is for a model, and" in error.err
    assert error.code == 2


@pytest.mark.usefixtures("project")
def test_a_lora(
    capsys: Capture,
    tiny_bundle: Path,
    tiny_pipeline_dir: Path,
    builds: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "fox.safetensors"
    loras.save(loras.peft("unet.", {"conv_in": (torch.ones(1, 4), torch.ones(32, 1))}), file)
    run(capsys, "run", tiny_pipeline_dir, "--lora", f"{file}:-0.5", *CALL)
    assert builds.pop() == {
        "model": str(tiny_pipeline_dir), "loras": ((str(file), -0.5),),
        "out": Path("engines") / tiny_pipeline_dir.name, "size": None, "image_to_image": False,
    }  # fmt: skip
    source = resolve_source(str(tiny_pipeline_dir), loras=[(str(file), -0.5)])
    record = source.record().model_dump(mode="json")
    placed(tiny_bundle, Path("engines") / tiny_pipeline_dir.name, **record)
    for given in ((), ("--lora", f"{file}:-0.5")):
        assert run(capsys, "run", tiny_pipeline_dir, *given, *CALL).code == 0
    assert not builds
    result = run(capsys, "run", tiny_pipeline_dir, "--lora", file, *CALL)
    assert "is built again: it was built from other files." in result.err.splitlines()[0]
    assert builds.pop()["loras"] == ((str(file), 1.0),)
    error = run(capsys, "run", tiny_bundle, "--lora", file, *CALL)
    assert "--lora is for a model, and" in error.err
    # Of a model on the hub the LoRA alone is asked after.
    hub = {**record, "kind": "hub", "model": "stabilityai/sd-turbo", "revision": COMMIT}
    placed(tiny_bundle, Path("engines/sd-turbo"), **hub)
    assert run(capsys, "run", "sd-turbo", "--lora", f"{file}:-0.5", *CALL).code == 0


@pytest.mark.usefixtures("project")
def test_an_embedding(
    capsys: Capture,
    tiny_bundle: Path,
    tiny_pipeline_dir: Path,
    builds: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "fox.safetensors"
    checkpoints.save({"emb_params": torch.ones(2, 32)}, file)
    run(capsys, "run", tiny_pipeline_dir, "--embedding", f"{file}:<cat>", *CALL)
    assert builds.pop()["embeddings"] == ((str(file), "<cat>"),)
    source = resolve_source(str(tiny_pipeline_dir), embeddings=[(str(file), "<cat>")])
    record = source.record().model_dump(mode="json")
    placed(tiny_bundle, Path("engines") / tiny_pipeline_dir.name, **record)
    for given in ((), ("--embedding", f"{file}:<cat>")):
        assert run(capsys, "run", tiny_pipeline_dir, *given, *CALL).code == 0
    assert not builds
    run(capsys, "run", tiny_pipeline_dir, "--embedding", file, *CALL)
    assert builds.pop()["embeddings"] == ((str(file), None),)
    error = run(capsys, "run", tiny_bundle, "--embedding", file, *CALL)
    assert "--embedding is for a model, and" in error.err
    hub = {**record, "kind": "hub", "model": "stabilityai/sd-turbo", "revision": COMMIT}
    placed(tiny_bundle, Path("engines/sd-turbo"), **hub)
    assert run(capsys, "run", "sd-turbo", "--embedding", f"{file}:<cat>", *CALL).code == 0
    assert not builds


@pytest.mark.usefixtures("project")
def test_a_changed_model_is_built_again_as_it_was(
    capsys: Capture, reuse_bundle: Path, builds: list[Any], model: Path
) -> None:
    placed(reuse_bundle, Path("engines/mine"), model=str(model))
    assert run(capsys, "run", model, *CALL).code == 0
    assert not builds
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"beta_end": 0.013}))
    result = run(capsys, "run", model, *CALL)
    assert "engines/mine is built again: the model's files changed." in result.err.splitlines()[0]
    (found,) = builds
    kept = ("sp_interval", "fi_interval", "warm_up", "gate_step")
    assert {name: found[name] for name in kept} == {
        "sp_interval": 5, "fi_interval": 2, "warm_up": 2, "gate_step": 10,
    }  # fmt: skip
    assert (found["model"], found["out"]) == (str(model), Path("engines/mine"))
    assert "image_to_image" not in found


@pytest.mark.usefixtures("project")
def test_an_image_brings_image_to_image(
    capsys: Capture, reuse_bundle: Path, builds: list[Any], model: Path
) -> None:
    Image.new("RGB", (16, 16)).save("begin.png")
    run(capsys, "run", model, *CALL, "--image", "begin.png")
    assert builds.pop()["image_to_image"] is True
    placed(reuse_bundle, Path("engines/mine"), model=str(model))
    result = run(capsys, "run", model, *CALL, "--image", "begin.png")
    assert "engines/mine is built again: it lacks image-to-image." in result.err.splitlines()[0]
    (found,) = builds
    assert (found["image_to_image"], found["sp_interval"]) == (True, 5)


@pytest.mark.usefixtures("project")
def test_a_model_of_the_hub_is_not_asked_after(
    capsys: Capture, tiny_bundle: Path, builds: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def offline(*_arguments: object, **_options: object) -> None:
        raise OSError("no network")

    for name in ("snapshot_download", "list_repo_files", "try_to_load_from_cache"):
        monkeypatch.setattr(huggingface_hub, name, offline)
    hub_id = "stabilityai/sd-turbo"
    for name in ("sd-turbo", "x"):
        placed(tiny_bundle, Path("engines") / name, kind="hub", model=hub_id, revision=COMMIT)
    for name in ("sd-turbo", hub_id, f"{hub_id}@{COMMIT}"):
        assert run(capsys, "run", name, *CALL).code == 0
    assert run(capsys, "run", hub_id, "--bundle", "engines/x", *CALL).code == 0
    result = run(capsys, "run", f"{hub_id}@main", *CALL)
    assert "cannot download stabilityai/sd-turbo from Hugging Face (no network)" in result.error()
    assert not builds


def test_bundles_that_cannot_be_read(
    capsys: Capture, tiny_bundle_copy: Path, tiny_pipeline_dir: Path, builds: list[Any]
) -> None:
    path = tiny_bundle_copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    result = run(capsys, "run", tiny_pipeline_dir, "--bundle", tiny_bundle_copy, *CALL)
    assert "schema" in result.error()
    assert not builds
