"""`generate` with plans: the real TensorRT-RTX where no GPU is, and an emulated GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CPU_BACKENDS
from tests.support.command import Result, run
from tests.support.emulation.install import install
from tests.support.emulation.plans import write_emulated
from tests.support.emulation.real import write_real

Generate = Callable[..., Result]


@pytest.fixture
def generate(
    capsys: pytest.CaptureFixture[str], tiny_bundle_copy: Path, tmp_path: Path
) -> Generate:
    def call(*options: object) -> Result:
        return run(
            capsys, "generate", tiny_bundle_copy, "--prompt", "a", "--out", tmp_path / "x.png",
            "--steps", 3, "--gate-step", 1, "--seed", 3, *options,
        )  # fmt: skip

    return call


@pytest.fixture
def real_plan(tiny_bundle_copy: Path) -> None:
    """A plan for an RTX 40 GPU, and no driver."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("polygraphy")
    if runtime.cudaDriverGetVersion()[1]:
        pytest.skip("this machine has a CUDA driver")
    write_real(tiny_bundle_copy, "tensorrt-rtx", ["8.9"], ["sampler"])


@pytest.mark.usefixtures("real_plan")
def test_a_real_plan_without_a_driver(generate: Generate, tmp_path: Path) -> None:
    result = generate("--backend", "tensorrt-rtx")
    assert result.error() == (
        "error: no CUDA driver on this machine: install NVIDIA's driver, "
        "or use --backend onnxruntime:cpu"
    )
    assert result.code == 1
    assert not (tmp_path / "x.png").exists()


@pytest.mark.usefixtures("real_plan")
def test_auto_goes_on_without_a_driver(generate: Generate, tmp_path: Path) -> None:
    report = generate("--json").json()
    assert report["backend"] in CPU_BACKENDS
    assert "(tensorrt-rtx: no CUDA driver on this machine" in report["backend_reason"]
    assert report["device_memory"] is None
    assert (tmp_path / "x.png").exists()


def test_plans_on_a_gpu(
    generate: Generate, tiny_bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate("--backend", "onnxruntime:cpu")
    expected = (tmp_path / "x.png").read_bytes()
    gpu = install(monkeypatch)
    write_emulated(tiny_bundle_copy)
    report = generate("--json").json()
    assert (report["backend"], report["backend_reason"]) == (
        "tensorrt-rtx", "the fastest that works here",
    )  # fmt: skip
    memory = report["device_memory"]
    parts = [*memory["weights_bytes"].values(), memory["activations_bytes"]]
    assert memory["total_bytes"] == sum(parts) + memory["buffers_bytes"]
    assert (tmp_path / "x.png").read_bytes() == expected
    assert gpu.cuda.calls["cudaGraphLaunch"] > 0


def test_options_for_plans(
    generate: Generate, tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = install(monkeypatch)
    write_emulated(tiny_bundle_copy)
    assert generate("--no-cuda-graphs").code == 0
    assert "cudaGraphLaunch" not in gpu.cuda.calls
    result = generate("--weight-streaming-budget", 0.5)
    assert "was not built to stream weights: leave out the budget" in result.error()
