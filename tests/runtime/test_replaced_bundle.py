"""What becomes of a loaded pipeline when its bundle moves, is replaced, or is written to."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.emulation.install import install
from tests.support.emulation.plans import write_emulated
from tgate_export import TGatePipeline
from tgate_export.common.errors import BundleError
from tgate_export.runtime.backends import onnxruntime_sessions, weight_file

CALL: dict[str, Any] = {"num_inference_steps": 2, "gate_step": 1, "seed": 1, "output_type": "np"}
WEIGHTS = "graphs/denoiser.weights"


def generate(pipeline: TGatePipeline, **more: Any) -> np.ndarray:
    return np.asarray(pipeline("a fox", **(CALL | more)).images)


def other_weights(bundle: Path) -> None:
    """Put others of the same size in their place, as a build of another model would."""
    weights = np.fromfile(bundle / WEIGHTS, np.float32)
    (weights * 1.5).astype(np.float32).tofile(bundle / "new")
    (bundle / "new").replace(bundle / WEIGHTS)


@pytest.fixture(scope="module")
def picture(tiny_bundle: Path, cpu_backend: str) -> np.ndarray:
    return generate(TGatePipeline.from_bundle(tiny_bundle, cpu_backend))


def test_a_relative_path_and_another_folder(
    tiny_bundle_copy: Path, cpu_backend: str, picture: np.ndarray, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tiny_bundle_copy.parent)
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy.name, cpu_backend)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(generate(pipeline), picture)


def test_a_link_that_points_to_the_next_one(
    tiny_bundle_copy: Path, cpu_backend: str, picture: np.ndarray, tmp_path: Path
) -> None:
    """A way to put a new version in place; what runs goes on with the one that it opened."""
    following = Path(shutil.copytree(tiny_bundle_copy, tmp_path / "following"))
    other_weights(following)
    current = tmp_path / "current"
    current.symlink_to(tiny_bundle_copy)
    pipeline = TGatePipeline.from_bundle(current, cpu_backend)
    current.unlink()
    current.symlink_to(following)
    np.testing.assert_array_equal(generate(pipeline), picture)


def test_weights_that_were_replaced_before_they_were_loaded(
    tiny_bundle_copy: Path, cpu_backend: str
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, cpu_backend)
    other_weights(tiny_bundle_copy)
    with pytest.raises(BundleError, match=r"denoiser\.weights was changed while the bundle was in"):
        generate(pipeline)


def test_a_bundle_that_was_replaced_after_it_was_loaded(
    tiny_bundle_copy: Path, cpu_backend: str, picture: np.ndarray, tmp_path: Path
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, cpu_backend)
    generate(pipeline)
    tiny_bundle_copy.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tiny_bundle_copy)
    other_weights(tiny_bundle_copy)
    shutil.rmtree(tmp_path / "old")
    np.testing.assert_array_equal(generate(pipeline), picture)
    # A sampler that was not used before is the new bundle's.
    table = tiny_bundle_copy / "samplers" / "euler.json"
    table.write_bytes(table.read_bytes() + b" ")
    with pytest.raises(BundleError, match=r"euler\.json was changed while the bundle was in use"):
        generate(pipeline, scheduler="euler")


def test_a_bundle_that_was_copied_over_by_itself(
    tiny_bundle_copy: Path, cpu_backend: str, picture: np.ndarray, tmp_path: Path
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, cpu_backend)
    tiny_bundle_copy.rename(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tiny_bundle_copy, copy_function=shutil.copyfile)
    np.testing.assert_array_equal(generate(pipeline), picture)


def cut(file: Path) -> None:
    os.truncate(file, 0)


def overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(bytes(64))


@pytest.mark.parametrize("damage", [cut, overwrite])
def test_weights_that_are_written_to_while_they_are_in_use(
    tiny_bundle_copy: Path, cpu_backend: str, damage: Callable[[Path], None]
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, cpu_backend)
    generate(pipeline)
    damage(tiny_bundle_copy / WEIGHTS)
    # For another batch, OpenVINO compiles once more.
    for images in (1, 2):
        with pytest.raises(BundleError, match=r"denoiser\.weights was changed while it was in use"):
            generate(pipeline, num_images_per_prompt=images)


def test_plans_that_were_replaced(tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    write_emulated(tiny_bundle_copy, "tensorrt-rtx", name="mine")
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, "tensorrt-rtx")
    plan = sorted((tiny_bundle_copy / "plans" / "mine").glob("*full*"))[0]
    plan.write_bytes(plan.read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"{plan.name} was changed while the bundle was in use"):
        generate(pipeline)


def test_a_file_system_without_maps(
    tiny_bundle: Path, cpu_backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_sessions, "SMALL_GRAPH_BYTES", 0)
    mapped = generate(TGatePipeline.from_bundle(tiny_bundle, cpu_backend))

    def refuse(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(weight_file.mmap, "mmap", refuse)
    np.testing.assert_array_equal(
        generate(TGatePipeline.from_bundle(tiny_bundle, cpu_backend)), mapped
    )
