"""The generated repository, by Triton's own definition of a model's configuration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from tests.support.command import run
from tgate_export.bundle.integrity import open_bundle, read_manifest
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.embed.triton.interface import inputs, outputs
from tgate_export.embed.triton.repository import (
    BUNDLE_FOLDER,
    ServingOptions,
    bundle_of,
    write_repository,
)


def config_of(model: Path) -> Any:
    return text_format.Parse((model / "config.pbtxt").read_text(), ModelConfig())


def parameters_of(config: Any) -> dict[str, str]:
    return {name: entry.string_value for name, entry in config.parameters.items()}


@pytest.fixture(scope="module")
def model(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tiny_bundle, tmp_path_factory.mktemp("repository"), name="tiny")


def test_configuration_is_one(model: Path, tiny_bundle: Path) -> None:
    config, manifest = config_of(model), open_bundle(tiny_bundle).manifest
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 0)
    assert config.model_transaction_policy.decoupled
    assert [entry.name for entry in config.input] == [port.name for port in inputs(manifest)]
    assert [entry.name for entry in config.output] == [port.name for port in outputs(manifest)]
    assert all(entry.optional for entry in config.input)
    assert parameters_of(config) == {"backend": "auto", "max_images": "64", "max_pending": "128"}
    (group,) = config.instance_group
    assert (group.count, group.kind) == (1, ModelInstanceGroup.KIND_AUTO)
    assert {entry.name: list(entry.dims) for entry in config.input}["prompt_embeds"] == [-1, 77, 32]


def test_the_bundle_is_whole_and_in_the_repository(model: Path, tiny_bundle: Path) -> None:
    served = bundle_of(model, "1")
    assert open_bundle(served).manifest == open_bundle(tiny_bundle).manifest
    graph = Path("graphs") / "full.onnx"
    assert os.path.samefile(served / graph, tiny_bundle / graph)  # no second copy on disk
    assert not any(path.is_symlink() for path in model.rglob("*"))


def test_options_and_names_are_written(tiny_bundle: Path, tmp_path: Path) -> None:
    options = ServingOptions(
        backend="tensorrt-rtx", gpus=(0, 2), execution_env='/opt/a "b"\\ü.tar.gz', max_batch=4,
        max_in_flight=9, max_pending=10, call_target=0.5, max_images=3,
    )  # fmt: skip
    model = write_repository(tiny_bundle, tmp_path / "r", options, name="x y", copy=True)
    config = config_of(model)
    assert config.name == "x y"
    assert [(list(group.gpus), group.kind) for group in config.instance_group] == [
        ([0], ModelInstanceGroup.KIND_GPU), ([2], ModelInstanceGroup.KIND_GPU),
    ]  # fmt: skip
    assert parameters_of(config) == {
        "backend": "tensorrt-rtx", "EXECUTION_ENV_PATH": '/opt/a "b"\\ü.tar.gz', "max_batch": "4",
        "max_in_flight": "9", "max_pending": "10", "call_target": "0.5", "max_images": "3",
    }  # fmt: skip
    graph = Path("graphs") / "full.onnx"
    assert not os.path.samefile(model / "1" / BUNDLE_FOLDER / graph, tiny_bundle / graph)


def test_a_model_is_replaced_and_others_are_left(tiny_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_repository(tiny_bundle, tmp_path, name="tiny")
    (tmp_path / "tiny" / "1" / "stale").touch()
    write_repository(tiny_bundle, tmp_path, name="tiny")
    assert not (tmp_path / "tiny" / "1" / "stale").exists()
    assert other.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "tiny"]


def test_what_is_not_ours_is_not_replaced(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(TGateError, match="is not a model of this program"):
        write_repository(tiny_bundle, tmp_path, name="tiny")
    (tmp_path / "tiny" / "config.pbtxt").write_text('name: "tiny"')
    with pytest.raises(TGateError, match="was not written by this program"):
        write_repository(tiny_bundle, tmp_path, name="tiny")
    assert (tmp_path / "tiny" / "config.pbtxt").read_text() == 'name: "tiny"'


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"max_batch": 9}, "max_batch must be 1 to 8"),
        ({"max_batch": 0}, "max_batch must be 1 to 8"),
        ({"max_pending": 0}, "max_pending must be above 0"),
        ({"max_images": 0}, "max_images must be above 0"),
        ({"call_target": float("nan")}, "call_target must be above 0"),
        ({"execution_env": "env.tar.gz"}, "must be an absolute path"),
    ],
)
def test_options_that_cannot_be(
    tiny_bundle: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        write_repository(tiny_bundle, tmp_path / "r", ServingOptions(**options))
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc"])
def test_names_that_leave_the_repository(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match="is not the name of a folder"):
        write_repository(tiny_bundle, tmp_path / "r", name=name)


def test_damaged_bundle_writes_nothing(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    (tiny_bundle_copy / "graphs" / "full.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"full\.onnx"):
        write_repository(tiny_bundle_copy, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_only_the_bundle_is_copied(tiny_bundle_copy: Path, tmp_path: Path) -> None:
    build = tiny_bundle_copy / "plans" / ".set.building-x"  # of a build that is running
    build.mkdir(parents=True)
    (build / "full.plan").symlink_to("/etc/passwd")
    model = write_repository(tiny_bundle_copy, tmp_path / "models")
    copied = {path.relative_to(model / "1" / "bundle").as_posix() for path in files_below(model)}
    assert copied == {"manifest.json", *read_manifest(tiny_bundle_copy).files}


def files_below(model: Path) -> list[Path]:
    found = list((model / "1" / "bundle").rglob("*"))
    return [path for path in found if path.is_symlink() or not path.is_dir()]


def test_a_link_out_of_the_repository_is_not_followed(tiny_bundle: Path, tmp_path: Path) -> None:
    model = write_repository(tiny_bundle, tmp_path, name="tiny")
    bundle = model / "1" / BUNDLE_FOLDER
    shutil.rmtree(bundle)
    bundle.symlink_to(tiny_bundle)
    with pytest.raises(TGateError, match="is a link that leaves the repository"):
        bundle_of(model, "1")


def test_command(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(
        capsys, "embed", "triton", tiny_bundle, "--out", tmp_path / "r", "--name", "tiny",
        "--gpu", 0, "--gpu", 1, "--max-pending", 7, "--max-images", 5,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "tritonserver --model-repository" in result.err
    config = config_of(tmp_path / "r" / "tiny")
    assert len(config.instance_group) == 2
    assert config.parameters["max_pending"].string_value == "7"
    assert config.parameters["max_images"].string_value == "5"


def test_command_errors(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = run(capsys, "embed", "triton", tmp_path / "none", "--out", tmp_path / "r")
    assert (missing.code, "is not a bundle" in missing.error()) == (1, True)
    wrong = run(capsys, "embed", "triton", tiny_bundle, "--out", tmp_path / "r", "--backend", "x")
    assert (wrong.code, "unknown backend" in wrong.error()) == (2, True)
    unknown = run(capsys, "embed", "tritn")
    assert unknown.code == 2
    assert "No such command 'tritn'" in unknown.error()
