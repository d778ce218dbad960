"""`bench`: files that hold what was measured, and one clear line for everything else."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import CPU_BACKENDS
from tests.support.command import Result, run
from tgate_export.bench import peak_memory
from tgate_export.bench import result as result_module
from tgate_export.bench.result import BenchResult
from tgate_export.bundle.integrity import read_manifest
from tgate_export.cli._reports import _relative

Bench = Callable[..., Result]
SCHEMAS = Path(result_module.__file__).parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (path := tmp_path / "reports").mkdir()
    return path


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> Bench:
    """Measure the tiny bundle in few steps; later options override earlier ones."""

    def call(*options: object, bundle: Path = tiny_bundle) -> Result:
        return run(capsys, "bench", bundle, "--steps", 4, "--repeats", 2, "--warmup", 1, *options)

    return call


def test_reports(bench: Bench, folder: Path) -> None:
    result = bench(
        "--gate-steps", "1,2", "--json", folder / "b.json", "--markdown", folder / "b.md"
    )
    assert result.code == 0, result.err
    text = (folder / "b.json").read_text()
    jsonschema.validate(json.loads(text), json.loads((SCHEMAS / "bench.schema.json").read_text()))
    found = BenchResult.model_validate_json(text)
    assert found.complete
    assert [row.label for row in found.rows][:3] == [
        "4 steps, no gate",
        "gate 1 of 4",
        "gate 1 of 4, blend 1, carry 0.25",
    ]
    (target,) = found.targets
    assert target.backend in CPU_BACKENDS
    # The interpreter and a backend alone are more than 30 MB.
    assert target.peak_host_bytes is not None
    assert target.peak_host_bytes > 30e6
    assert target.weights_bytes < 10e6
    for row in found.rows:
        assert len(row.latencies_s) == 2
        assert sum(entry.p50 for entry in row.stages.values()) > 0
        assert f"{row.speedup.value:.2f}x" in result.out  # type: ignore[union-attr]
    lines = (folder / "b.md").read_text().splitlines()
    assert sum(line.startswith("| gate 1 of 4 |") for line in lines) == 4
    assert lines[2] == f"**{found.answers[0].sentence}**"
    assert "## Machine" in lines


def test_the_answer_ends_the_output_and_its_command_runs(
    bench: Bench, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench("--gate-steps", 1, "--scheduler", "euler", "--json", folder / "b.json")
    (answer,) = json.loads((folder / "b.json").read_text())["answers"]
    assert result.out.splitlines()[-2:] == [answer["sentence"], f"  {answer['command']}"]
    program, *arguments = shlex.split(answer["command"])
    assert program == "tgate-export"
    assert run(capsys, *arguments, "--out", folder / "x.png").code == 0


def test_cache_bytes(bench: Bench, folder: Path, tiny_bundle: Path) -> None:
    assert bench("--json", folder / "b.json").code == 0
    (target,) = json.loads((folder / "b.json").read_text())["targets"]
    numbers = sum(  # of a picture of 16 pixels a side, 8 latents
        math.prod(int(side) for side in cache.shape[1:])
        for cache in read_manifest(tiny_bundle).caches.values()
    )
    assert target["cache_bytes"] == 4 * numbers


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--gate-steps", "1,x"], "'x' is not a whole number: give a list such as 5,10,15"),
        (["--gate-steps", "4"], "4 is not 1 to 3"),
        (["--scheduler", "heun"], "unknown scheduler 'heun'"),
        (["--steps", 101], "steps must be 1 to 100, got 101"),
        (["--steps", 1], "1 is not in the range x>=2"),
        (["--batch", 9], "batch 9 does not fit"),
        (["--repeats", 0], "0 is not in the range x>=1"),
        (["--json", "nowhere/b.json"], "--json nowhere/b.json: the folder nowhere does not exist"),
        (["--html", "."], "--html . is a folder"),
        (["--json", "b.x", "--markdown", "./b.x"], "--json and --markdown name the same file"),
    ],
)
def test_wrong_option(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], reason: str
) -> None:
    monkeypatch.chdir(folder)
    result = bench(*options)
    assert reason in result.error()
    assert result.code == 2
    assert os.listdir(folder) == []


def test_report_in_a_folder_without_permission(
    bench: Bench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere, and tests may run as root.
    access = os.access
    monkeypatch.setattr(
        "tgate_export.cli._reports.os.access",
        lambda path, mode: path != folder and access(path, mode),
    )
    assert "b.json cannot be written" in bench("--json", folder / "b.json").error()


@pytest.mark.parametrize("graph", ["gated", "vae_decoder", "sampler"])
def test_bundle_that_lacks_a_graph(bench: Bench, tiny_bundle_copy: Path, graph: str) -> None:
    path = tiny_bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text())
    removed = manifest["graphs"].pop(graph)
    manifest["files"].pop(removed["file"])
    (tiny_bundle_copy / removed["file"]).unlink()
    path.write_text(json.dumps(manifest))
    result = bench(bundle=tiny_bundle_copy)
    assert f"has no graph {graph!r}" in result.error()


def test_missing_extra(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgate_export.bench.compare.find_spec", lambda name: None)
    assert "pip install 'jinja2>=" in bench().error()


def test_peak_memory_of_a_process_that_fails(tmp_path: Path) -> None:
    assert peak_memory.measure_peak(tmp_path / "nothing", "auto", {}) is None


def test_commands_of_reports_name_no_folder_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engines").mkdir()
    monkeypatch.chdir(tmp_path)
    here = Path.cwd()
    assert _relative(here / "engines/shapes") == Path("engines/shapes")
    assert _relative(here.parent / "x") == here.parent / "x"
