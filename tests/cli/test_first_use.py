"""What people type first means what they mean, or says what to type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import Result, run
from tgate_export.build.build import build_bundle
from tgate_export.bundle.integrity import read_manifest
from tgate_export.cli._console import next_commands
from tgate_export.common.errors import TGateError
from tgate_export.common.hints import Call, in_python, worded
from tgate_export.common.progress import Progress
from tgate_export.families.names import NAMED_MODELS


@pytest.fixture
def project(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a bundle where `build` puts it."""
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "tiny").symlink_to(tiny_bundle, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def generate(capsys: pytest.CaptureFixture[str], bundle: object, *options: object) -> Result:
    return run(capsys, "generate", bundle, "--steps", 1, *options)


@pytest.mark.parametrize("size", ["16", "16x16"])
def test_name_of_what_was_built_and_one_side(
    project: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    options = ("--prompt", "x", "--size", size, "--backend", "onnxruntime:cpu")
    assert generate(capsys, "tiny", *options).code == 0
    assert (project / "x.png").is_file()


def test_a_folder_of_that_name_comes_first(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "tiny").mkdir()
    assert "tiny is not a bundle" in generate(capsys, "tiny", "--prompt", "x").error()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "tiny"], '--prompt is missing: what to show, such as --prompt "a red'),
        (["generate", "tinny", "--prompt", "x"], "tinny is not a bundle: no such folder"),
        (
            ["generate", "tiny", "--prompt", "x", "--backend", "cuda"],
            "unknown backend 'cuda': did you mean onnxruntime:cuda?",
        ),
        (
            ["generate", "tiny", "--prompt", "x", "--backend", "cpu"],
            "unknown backend 'cpu': did you mean openvino or onnxruntime:cpu?",
        ),
        (["build", "--model", "./nofolder"], "./nofolder: no such folder"),
        (["build", "--model", "a/b/c"], "a/b/c: no such folder"),
        (["build", "--model", "/nofolder"], "/nofolder: no such folder"),
        (["generate", "tiny", "--prompt", "x", "--size", "16x16x16"], "is not WxH, or N for NxN"),
    ],
)
@pytest.mark.usefixtures("project")
def test_says_what_to_type(
    capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    result = run(capsys, *arguments)
    assert result.code in (1, 2)
    assert says in result.error()


@pytest.mark.usefixtures("project")
def test_no_word_of_cuda_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgate_export.runtime import backends

    monkeypatch.setattr(backends, "has_driver", lambda: False)
    assert "cuda" not in generate(capsys, "tiny", "--prompt", "x").err.lower()
    monkeypatch.setattr(backends, "has_driver", lambda: True)  # a GPU that is not used: why
    assert "onnxruntime:cuda: " in generate(capsys, "tiny", "--prompt", "x").err


class Notes(Progress):
    """Keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, *text: str | Call) -> None:
        self.notes.append(worded(text, in_python))


@pytest.mark.parametrize(("gate_step", "off"), [(24, False), (25, True), (50, True)])
def test_a_gate_past_the_last_step_is_noted(
    tiny_pipeline_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    gate_step: int, off: bool,
) -> None:  # fmt: skip
    def stop(*_arguments: object) -> None:
        raise TGateError("as far as this test goes")

    monkeypatch.setattr("tgate_export.build.build.assemble", stop)
    progress = Notes()
    with pytest.raises(TGateError, match="as far"):
        build_bundle(
            str(tiny_pipeline_dir), gate_step=gate_step, out=tmp_path / "out", progress=progress
        )
    said = [note for note in progress.notes if "turns gating off in runs of 25 steps" in note]
    assert len(said) == off


def test_next_lines_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "it's a [bold]folder[/] & more"
    folder.mkdir(parents=True)
    commands = [["test", "-d", folder], ["printf", "%s\n", folder, "a b"]]
    next_commands("Next", *commands)
    title, *lines = capsys.readouterr().err.splitlines()
    assert title == "Next:"
    assert [shlex.split(line) for line in lines[:1]] == [["test", "-d", str(folder)]]
    shell = subprocess.run(["sh", "-e"], input="\n".join(lines), capture_output=True, text=True,
                           check=True)  # fmt: skip
    assert shell.stdout.splitlines() == [str(folder), "a b"]


def test_models_fit_sixty_columns() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "tgate_export", "models"], capture_output=True, text=True,
        check=True, env={**os.environ, "COLUMNS": "60"},
    ).stdout  # fmt: skip
    assert max(map(len, shown.splitlines())) <= 60
    assert "…" not in shown
    table, _, _ = shown.partition("\n\n")
    rows = {row.split()[0]: row.split() for row in table.splitlines()[2:]}
    assert rows.keys() == NAMED_MODELS.keys()
    for name, model in NAMED_MODELS.items():
        assert rows[name][1] == "{}x{}".format(*model.size)
        assert rows[name][-1] == model.defaults.scheduler


def complete(line: str, folder: Path) -> set[str]:
    """What bash would offer for an unfinished line."""
    words = line.split(" ")
    shown = subprocess.run(
        [Path(sys.executable).with_name("tgate-export")], capture_output=True, text=True,
        check=True, cwd=folder,
        env={
            **os.environ, "_TGATE_EXPORT_COMPLETE": "bash_complete", "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    ).stdout  # fmt: skip
    return {row.partition(",")[2] for row in shown.splitlines() if row.startswith("plain,")}


def test_completion(project: Path) -> None:
    assert {"build", "bench"} == complete("tgate-export b", project)
    sds = {name for name in NAMED_MODELS if name.startswith("sd")}
    assert complete("tgate-export build --model sd", project) == sds
    assert "onnxruntime:cpu" in complete("tgate-export generate tiny --backend o", project)
    assert complete("tgate-export generate t", project) == {"tiny"}
    samplers = set(read_manifest(project / "engines" / "tiny").samplers)
    assert complete("tgate-export generate tiny --prompt x --scheduler ", project) == samplers
