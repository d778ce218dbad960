"""A checkpoint in one file becomes the bundle that its pipeline's folder does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import checkpoints, tiny
from tests.support.once import made_once
from tgate_export.build.build import build_bundle
from tgate_export.build.verify_bundle import verify_bundle
from tgate_export.bundle.integrity import open_bundle, read_manifest
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import ModelError
from tgate_export.common.hints import Call
from tgate_export.common.progress import Progress
from tgate_export.runtime.rebuild import rebuild
from tgate_export.verify.differences import require


class Notes(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, *text: str | Call) -> None:
        self.said.append("".join(part if isinstance(part, str) else str(part) for part in text))


@pytest.mark.builds
def test_the_bundle_is_that_of_the_folder(
    tiny_pipeline_dir: Path, tiny_bundle: Path, tmp_path: Path
) -> None:
    file = checkpoints.write(tiny_pipeline_dir, "sd1", tmp_path / "mine.safetensors")
    notes = Notes()
    found = build_bundle(
        str(file), config=str(tiny_pipeline_dir), out=tmp_path / "bundle", progress=notes
    )
    expected = read_manifest(tiny_bundle)
    assert found.manifest.files == expected.files
    assert found.manifest.parameters == expected.parameters
    assert found.manifest.source.fingerprint != expected.source.fingerprint
    said = f"mine.safetensors is built with the configurations of {tiny_pipeline_dir}"
    assert notes.said[0] == said
    again = build_bundle(str(file), config=str(tiny_pipeline_dir), out=tmp_path / "bundle")
    assert again.up_to_date
    command = on_command_line(rebuild(open_bundle(found.path)))
    assert command.startswith(f"tgate-export build --model {file} --config {tiny_pipeline_dir} ")
    require(verify_bundle(found.path).differences)


@pytest.mark.slow  # a second export of one; what is loaded is compared in tests/families
def test_the_bundle_of_sdxl_is_that_of_the_folder(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = made_once(tmp_path_factory, "pipelines/sdxl", lambda folder: tiny.save("sdxl", folder))
    file = checkpoints.write(folder, "sdxl", tmp_path / "mine.safetensors")
    with tiny.only_samplers("ddim", "euler", "dpm++2m"):  # as others build it
        expected = made_once(
            tmp_path_factory, "bundles/sdxl", lambda out: tiny.build("sdxl", folder, out)
        )
        found = build_bundle(str(file), config=str(folder), size=tiny.SIZE, out=tmp_path / "bundle")
    assert found.manifest.files == read_manifest(expected).files


@pytest.mark.builds
def test_a_file_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    tiny.save("sd15", tmp_path / "p")
    tensors = checkpoints.sd1(checkpoints.parts_of(tmp_path / "p"))
    del tensors["model.diffusion_model.out.2.bias"]
    file = checkpoints.save(tensors, tmp_path / "mine.safetensors")
    with pytest.raises(ModelError, match=r"it lacks conv_out\.bias"), tiny.only_samplers("ddim"):
        build_bundle(
            str(file), config=str(tmp_path / "p"), size=tiny.SIZE, out=tmp_path / "engines" / "x"
        )
    left = [path.name for path in (tmp_path / "engines").glob("*")]
    assert left == []
