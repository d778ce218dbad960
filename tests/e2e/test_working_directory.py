"""What lies in the working directory is no module: a folder of downloads may hold a torch.py."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLANTED = ("torch", "numpy", "json", "click", "diffusers", "onnxruntime", "openvino", "tempfile")
FILES = sorted([*(ROOT / "tgate_export").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of modules that say so when they are imported."""
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(
            f"import os\nopen(os.path.join({str(tmp_path)!r}, 'PWNED'), 'a').write('{name} ')\n"
        )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


def test_the_trap_works(planted: Path) -> None:
    subprocess.run([sys.executable, "-c", "import click"], check=False, capture_output=True)
    assert (planted / "PWNED").read_text() == "click "


def test_the_process_that_compiles_samplers(planted: Path, tiny_pipeline_dir: Path) -> None:
    from tgate_export.common.progress import Progress
    from tgate_export.samplers.compile_all import SamplerCompilation

    config = tiny_pipeline_dir / "scheduler" / "scheduler_config.json"
    with SamplerCompilation(
        json.loads(config.read_text()), planted / "samplers", ["ddim"]
    ) as compilation:
        assert compilation.results(Progress()).keys() == {"ddim"}
    assert not (planted / "PWNED").exists()


def test_the_process_that_measures_memory(planted: Path, tiny_bundle: Path) -> None:
    from tgate_export.bench.peak_memory import measure_peak

    call = {"prompt": "a", "num_inference_steps": 1, "gate_step": 1}
    assert measure_peak(tiny_bundle, "onnxruntime:cpu", call)
    assert not (planted / "PWNED").exists()


def test_the_command(planted: Path) -> None:
    command = Path(sys.executable).with_name("tgate-export")
    environment = {**os.environ, "PYTHONPATH": ""}
    subprocess.run([command, "models"], check=True, capture_output=True, env=environment)
    assert not (planted / "PWNED").exists()


def commands(module: ast.Module) -> Iterator[list[str]]:
    """Yield the constants of every list or tuple that has "-m" among them."""
    for node in ast.walk(module):
        if isinstance(node, ast.List | ast.Tuple):
            words = [entry.value for entry in node.elts if isinstance(entry, ast.Constant)]
            if "-m" in words:
                yield words


def test_commands_are_found() -> None:
    found = [words for file in FILES for words in commands(ast.parse(file.read_text()))]
    assert len(found) >= 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_process_looks_there(file: Path) -> None:
    for words in commands(ast.parse(file.read_text())):
        assert words[words.index("-m") - 1] == "-P", f"{file}: {words}"
