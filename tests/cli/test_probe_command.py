"""`probe`: a suggestion that can be run as it is printed, and one line for everything else."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from tests.support.command import Result, run
from tgate_export.bench import result as result_module
from tgate_export.bench.rows import BETTER, OFFICIAL
from tgate_export.bundle.integrity import read_manifest

Probe = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (path := tmp_path / "reports").mkdir()
    return path


@pytest.fixture
def probe(capsys: pytest.CaptureFixture[str], tiny_bundle: Path) -> Probe:
    def call(*options: object) -> Result:
        return run(capsys, "probe", tiny_bundle, "--steps", 4, *options)

    return call


def test_suggestion_runs(
    probe: Probe, folder: Path, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = folder / "prompts.txt"
    prompts.write_text("a fox\n\n  a café  \n", encoding="utf-8-sig")
    result = probe(
        "--prompts", prompts, "--min-ssim", 0, "--scheduler", "pndm", "--json", folder / "p.json"
    )
    assert result.code == 0, result.err
    found = json.loads((folder / "p.json").read_text())
    schema = Path(result_module.__file__).with_name("probe.schema.json")
    jsonschema.validate(found, json.loads(schema.read_text()))
    assert found["settings"]["prompts"] == ["a fox", "a café"]
    layers = [
        layer for cache in read_manifest(tiny_bundle).caches.values() for layer in cache.layers
    ]
    assert [curve["layer"] for curve in found["curves"]] == layers
    # PNDM evaluates once more than there are steps, so there are as many changes.
    assert {len(curve["change"]) for curve in found["curves"]} == {4}
    assert all(0 < value < 10 for curve in found["curves"] for value in curve["change"])
    assert found["suggested"].pop("gate_step") == 1
    assert found["suggested"] in (OFFICIAL, BETTER)
    assert found["gate_command"] in result.out
    program, *arguments = shlex.split(found["gate_command"])
    assert program == "tgate-export"
    assert run(capsys, *arguments, "--out", folder / "x.png").code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--prompts", "empty.txt"], "empty.txt holds no prompt: write one a line"),
        (["--prompts", "latin.txt"], "latin.txt is not UTF-8 (byte 5)"),
        (["--prompts", "none.txt"], "none.txt: No such file"),
        (["--prompts", "."], ".: Is a directory"),
        (["--json", "nowhere/p.json"], "the folder nowhere does not exist"),
        (["--html", "nowhere/p.html"], "the folder nowhere does not exist"),
        (["--backend", "abacus"], "unknown backend 'abacus'"),
        (["--scheduler", "heun"], "unknown scheduler 'heun'"),
        (["--steps", 101], "steps must be 1 to 100, got 101"),
        (["--min-ssim", 2], "2.0 is not in the range 0<=x<=1"),
    ],
)
def test_wrong_option(
    probe: Probe, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[object], reason: str
) -> None:
    monkeypatch.chdir(folder)
    Path("empty.txt").write_text("\n \n")
    Path("latin.txt").write_bytes(b"a caf\xe9\n")
    before = sorted(os.listdir(folder))
    result = probe(*options)
    assert reason in result.error()
    assert result.code == 2
    assert sorted(os.listdir(folder)) == before
