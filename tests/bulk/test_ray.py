"""Bulk runs on a Ray cluster: on one of this machine, with two actors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.command import run
from tgate_export.bulk import ray_runner
from tgate_export.bulk.local import LocalRunner
from tgate_export.bulk.output_folder import partial_folder
from tgate_export.bulk.prompt_file import PromptFile
from tgate_export.bulk.ray_actor import Actor, ActorArguments, in_order
from tgate_export.bulk.ray_runner import Pool, RayRunner
from tgate_export.bulk.record import hash_of_bundle
from tgate_export.bulk.run import Tally, run_bulk
from tgate_export.bulk.settings import BulkSettings
from tgate_export.bulk.worker import Result
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.locks import locked

WriteLines = Callable[..., Path]


def result(line: int, stop: str = "") -> Result:
    return Result({"line": line}, made=not stop, stop=stop)


def test_results_come_in_the_order_of_lines() -> None:
    """Which Ray needs to take up a block where an actor that died was."""
    found = in_order(map(result, [5, 3, 9, 4]), [3, 4, 5, 9])
    assert next(found).entry["line"] == 3
    assert [each.entry["line"] for each in found] == [4, 5, 9]
    stopped = in_order([result(4), result(5, "full"), result(3)], [3, 4, 5])
    assert [(each.entry["line"], each.stop) for each in stopped] == [(5, "full")]


def test_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runner, "_PACKAGES", tmp_path)
    assert ray_runner.sockets() == 1
    for cpu, package in enumerate([0, 0, 1, 1]):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "physical_package_id").write_text(f"{package}\n")
    assert ray_runner.sockets() == 2


def test_what_a_killed_run_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But nothing that somebody has, a new one that is not locked yet, or a link."""
    monkeypatch.setattr(ray_runner, "_FOLDERS", tmp_path)
    other = tmp_path / "other"
    for folder in ("tgate-ray-dead", "tgate-ray-used", "tgate-ray-new", "other"):
        (tmp_path / folder / "session").mkdir(parents=True)
        (tmp_path / folder / "session" / "log").touch()
    (tmp_path / "tgate-ray-link").symlink_to(other)
    with locked(tmp_path / "tgate-ray-used" / ".running"):
        for folder in ("tgate-ray-dead", "tgate-ray-used", "other"):
            os.utime(tmp_path / folder, (0, 0))
        with ray_runner._folder() as own:
            assert own.parent == tmp_path
            found = {path.name for path in tmp_path.iterdir()} - {own.name}
            assert found == {"tgate-ray-used", "tgate-ray-new", "tgate-ray-link", "other"}
            os.utime(own, (0, 0))
            with ray_runner._folder():
                assert own.is_dir()
        assert not own.exists()
    assert (tmp_path / "tgate-ray-used" / "session" / "log").exists()
    assert (other / "session" / "log").exists()


def test_without_ray(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(ray_runner, "find_spec", lambda _: None)
    (tmp_path / "x.jsonl").write_text('{"prompt": "a"}\n')
    error = run(
        capsys, "generate", tiny_bundle, "--prompts", tmp_path / "x.jsonl", "--out",
        tmp_path / "out", "--ray",
    ).error()  # fmt: skip
    assert "Ray Data is not installed: " in error
    assert not (tmp_path / "out").exists()


NODES = [
    {"Alive": True, "Resources": {}},  # a head that computes nothing
    {"Alive": True, "Resources": {"CPU": 16.0}},
    {"Alive": True, "Resources": {"CPU": 16.0}},
    {"Alive": False, "Resources": {"CPU": 16.0}},
]


@pytest.mark.parametrize(
    ("backend", "actors", "gpus", "expected"),
    [
        ("auto", None, 0, Pool(4, 0, 8)),
        ("auto", 3, 0, Pool(3, 0, 10)),
        ("auto", 64, 0, Pool(64, 0, 1)),
        ("auto", None, 5, Pool(5, 1, 1)),
        ("tensorrt", 2, 5, Pool(2, 1, 1)),
        ("onnxruntime:cpu", None, 5, Pool(4, 0, 8)),
    ],
)
def test_one_actor_a_gpu_or_a_socket(
    settings: BulkSettings,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    actors: int | None,
    gpus: int,
    expected: Pool,
) -> None:
    ray = pytest.importorskip("ray")
    resources = {"CPU": 32.0, **({"GPU": float(gpus)} if gpus else {})}
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    monkeypatch.setattr(ray_runner, "sockets", lambda: 2)
    assert RayRunner("", actors)._pool(replace(settings, backend=backend)) == expected


@pytest.fixture
def arguments(
    settings: BulkSettings, write_lines: WriteLines, image_bundle: Path, tmp_path: Path
) -> ActorArguments:
    """Of an actor, for lines of which the second has a torn picture."""
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    lines: list[dict[str, Any]] = [
        {"prompt": f"a {index}", "steps": 2 + index % 3, "gate_step": 1} for index in range(24)
    ]
    lines[1] |= {"image": "torn.png"}
    lines[2] |= {"image": "x.png", "strength": 1.0}
    write_lines(*lines)
    settings = replace(settings, bundle=image_bundle, backend="onnxruntime:cpu")
    with PromptFile(settings, open_bundle(image_bundle).manifest) as file:
        return ActorArguments(settings, file.sha256(), hash_of_bundle(image_bundle))


def block(settings: BulkSettings) -> dict[str, np.ndarray]:
    bundle = open_bundle(settings.bundle)
    with PromptFile(settings, bundle.manifest) as file:
        index = file.check(bundle)
    return {"number": np.array(index.numbers), "offset": np.array(index.offsets)}


def rows(actor: Actor, batch: dict[str, np.ndarray]) -> list[Result]:
    return [Result(**json.loads(text)) for row in actor(batch) for text in row["result"]]


def test_an_actor_without_ray(arguments: ActorArguments) -> None:
    settings = arguments.settings
    batch = block(settings)
    settings.out.mkdir()
    (settings.out / "run.json").touch()
    actor = Actor(arguments)
    with partial_folder(settings.out):
        for _ in range(2):  # a second block, or the first again
            found = rows(actor, {name: values[:10] for name, values in batch.items()})
            assert [each.entry["line"] for each in found] == list(range(1, 11))
            assert [each.made for each in found] == [True, False, *[True] * 8]
            assert "torn.png cannot be read" in found[1].entry["error"]
        settings.prompts.write_text("")
        assert "was changed while it was in use" in rows(actor, batch)[-1].stop
    file = settings.out / found[9].entry["file"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found[9].entry["sha256"]


def test_an_actor_elsewhere_says_what_it_lacks(arguments: ActorArguments, tmp_path: Path) -> None:
    batch = block(arguments.settings)
    (only,) = rows(Actor(arguments), batch)
    assert f"there is no {arguments.settings.out / 'run.json'}: the bundle, the" in only.stop
    arguments.settings.out.mkdir()
    (arguments.settings.out / "run.json").touch()
    for changed, reason in (
        (replace(arguments, bundle_sha256="0"), "is another bundle than where the run was started"),
        (replace(arguments, prompts_sha256="0"), "is another file than where the run was started"),
        (
            replace(arguments, settings=replace(arguments.settings, bundle=tmp_path / "none")),
            f"there is no {tmp_path / 'none'}",
        ),
    ):
        (only,) = rows(Actor(changed), batch)
        assert reason in only.stop


class StoppedError(Exception):
    pass


def hashes(out: Path) -> dict[str, str]:
    return {
        file.relative_to(out).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in (out / "images").rglob("*.*")
    }


def test_two_actors_complete_what_one_process_began(
    arguments: ActorArguments, tmp_path: Path
) -> None:
    """With the same files; and nothing of the working directory is imported."""
    pytest.importorskip("ray.data")
    settings, bundle = arguments.settings, open_bundle(arguments.settings.bundle)
    whole = replace(settings, out=tmp_path / "whole")
    run_bulk(whole, bundle, LocalRunner(), lambda _: None)

    def stop(tally: Tally) -> None:
        if tally.made == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        run_bulk(settings, bundle, LocalRunner(), stop)
    (hostile := tmp_path / "hostile").mkdir()
    for name in ("onnxruntime", "tokenizers", "PIL", "tgate_export", "sitecustomize"):
        (hostile / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    before = {path for path in Path("/tmp").iterdir() if path.name.startswith("tgate-ray-")}
    process = subprocess.run(
        [sys.executable, "-P", "-m", "tgate_export", "generate", settings.bundle, "--prompts",
         settings.prompts, "--out", settings.out, "--seed", str(settings.seed), "--json",
         "--ray", "--ray-actors", "2"],
        check=False, capture_output=True, text=True, cwd=hostile,
    )  # fmt: skip
    assert process.returncode == 1, process.stderr
    report = json.loads(process.stdout)
    assert (report["images"], report["made"], report["failed"]) == (23, 18, 1)
    assert "error: 1 of 24 lines failed: " in process.stderr
    assert "Traceback" not in process.stderr
    assert hashes(settings.out) == hashes(whole.out)
    lines = [json.loads(text) for text in (settings.out / "images.jsonl").read_text().splitlines()]
    assert sorted(entry["line"] for entry in lines) == [1, *range(3, 25)]
    assert {entry["file"]: entry["sha256"] for entry in lines} == hashes(settings.out)
    failures = (settings.out / "failures.jsonl").read_text().splitlines()
    assert [json.loads(text)["line"] for text in failures] == [2]
    assert not (tmp_path / "imported").exists()
    left = {path for path in Path("/tmp").iterdir() if path.name.startswith("tgate-ray-")} - before
    assert not left
    assert sorted(os.listdir(settings.out)) == [
        "failures.jsonl", "images", "images.jsonl", "run.json",
    ]  # fmt: skip


def test_a_cluster_that_is_not_there(
    capsys: pytest.CaptureFixture[str], arguments: ActorArguments
) -> None:
    pytest.importorskip("ray.data")
    settings = arguments.settings
    result = run(
        capsys, "generate", settings.bundle, "--prompts", settings.prompts, "--out", settings.out,
        "--ray=nowhere",
    )  # fmt: skip
    assert result.code == 1
    assert "cannot use Ray at nowhere: " in result.error()
    assert not settings.out.exists()
