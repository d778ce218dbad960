"""Samplers are compiled in a process of their own, which ends with the build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tgate_export.common.errors import ModelError, TGateError
from tgate_export.common.progress import Progress
from tgate_export.samplers.compile_all import SamplerCompilation, choose_default

# As a user writes it: at the top level of a script, without `if __name__ == "__main__"`.
SCRIPT = """
import os, sys
from pathlib import Path
from tgate_export.samplers.compile_all import SamplerCompilation

print("script runs", flush=True)
with SamplerCompilation({}, Path(sys.argv[1])) as compilation:
    if "die" in sys.argv:
        os.kill(os.getpid(), 9)
"""


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every sampler compiled, whatever earlier runs kept."""
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (script := folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, script, folder / "samplers", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    process = start(tmp_path)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out == "script runs\n"


def test_helper_that_is_killed_fails_the_build(tmp_path: Path) -> None:
    with SamplerCompilation({}, tmp_path / "samplers") as compilation:
        compilation._process.kill()
        with pytest.raises(TGateError, match="compiling samplers failed: killed"):
            compilation.results(Progress())


def test_helper_ends_with_a_killed_build(tmp_path: Path) -> None:
    process = start(tmp_path, "die")
    assert process.wait() == -signal.SIGKILL
    # The helper sees it at once; a busy machine may take a while to let it.
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("the helper process outlived the build")
    process.communicate()


class Notes(Progress):
    """Remembers what a build would have said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def test_samplers_that_refuse_the_configuration_are_left_out(tmp_path: Path) -> None:
    # DEIS knows no such algorithm, and spacings exclude each other. diffusers says so in the
    # constructors, by errors of two classes.
    config = {
        "beta_schedule": "scaled_linear", "clip_sample": False, "use_beta_sigmas": True,
        "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++",
    }  # fmt: skip
    notes, folder = Notes(), tmp_path / "samplers"
    with SamplerCompilation(config, folder, ["deis-karras", "euler", "ddim"]) as compilation:
        samplers = compilation.results(notes)
    assert list(samplers) == ["ddim"]
    assert [path.name for path in folder.iterdir()] == ["ddim.json"]
    first, second = notes.lines
    assert "'deis-karras' (DEISMultistepScheduler) is left out: NotImplementedError" in first
    assert "'euler' (EulerDiscreteScheduler) is left out: ValueError" in second


def test_no_sampler_compiles(tmp_path: Path) -> None:
    with (
        SamplerCompilation(
            {"beta_schedule": "no such"}, tmp_path / "samplers", ["euler", "ddim"]
        ) as compilation,
        pytest.raises(ModelError, match=r"no sampler can be compiled from .*'euler'.* left out"),
    ):
        compilation.results(Notes())


@pytest.mark.parametrize(
    ("wanted", "compiled", "chosen"),
    [
        ("euler", ["ddim", "euler"], "euler"),
        ("euler-karras", ["ddim", "euler"], "euler"),
        ("lcm", ["euler", "ddim"], "ddim"),
        ("pndm", ["unipc", "euler-a"], "unipc"),
        ("ddim", ["lcm", "euler-a"], "euler-a"),
    ],
)
def test_default_sampler_that_was_left_out(wanted: str, compiled: list[str], chosen: str) -> None:
    notes = Notes()
    assert choose_default(wanted, compiled, notes) == chosen
    expected = f"default sampler, {wanted}, was left out: the default is {chosen}"
    assert (wanted == chosen) == (not notes.lines)
    assert all(expected in line for line in notes.lines)
