"""ONNX Runtime's device path, with its CPU for a device: what it binds, copies and keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from tests.support.cpu_for_cuda import rows_read, with_cpu_for_cuda
from tests.support.solo import assert_equal_solo, assert_equals_solo, submit
from tgate_export import TGatePipeline
from tgate_export.runtime.backends.base import BackendOptions
from tgate_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tgate_export.runtime.backends.onnxruntime_rows import identity
from tgate_export.runtime.batching import Batcher, BatchingOptions

pytestmark = pytest.mark.usefixtures("plain_sessions")

RUNS: tuple[dict[str, Any], ...] = (
    {},
    {"scheduler": "pndm", "gate_step": 3},
    {"gate_step": 99, "num_inference_steps": 4},
    {"scheduler": "euler-a", "num_images_per_prompt": 3},
    {"prompt": ["b c", "d"], "negative_prompt": ["x", ""]},
    {},
)


@pytest.fixture(autouse=True)
def cpu_for_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return with_cpu_for_cuda(monkeypatch)


def latents_of(pipeline: TGatePipeline, prompt: Any = "a", **kwargs: Any) -> np.ndarray:
    defaults = {"num_inference_steps": 6, "gate_step": 2, "seed": 5, "output_type": "latent"}
    return np.asarray(pipeline(prompt, **(defaults | kwargs)).images)


def test_same_latents(tiny_bundle: Path) -> None:
    """One pipeline through changing samplers, gates, steps and batches, and back; twice each."""
    cpu = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    device = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cuda")
    for run in RUNS:
        expected = latents_of(cpu, **run)
        np.testing.assert_array_equal(latents_of(device, **run), expected, err_msg=str(run))
        np.testing.assert_array_equal(latents_of(device, **run), expected, err_msg=f"2nd {run}")


def test_steps_share_what_was_captured(tiny_bundle: Path) -> None:
    device: Any = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cuda")
    latents_of(device, num_inference_steps=4)
    batch = device._runner._input_batch
    bound = dict(batch._bound)
    assert sorted(graph for graph, _, _ in bound) == [
        "full", "gated", "sampler", "sampler", "text_encoder", "vae_decoder",
    ]  # fmt: skip
    latents_of(device, num_inference_steps=10, gate_step=5)
    assert device._runner._input_batch is batch
    assert batch._bound == bound
    latents_of(device, num_images_per_prompt=2)  # at other addresses
    assert device._runner._input_batch is not batch


def test_a_graph_that_cannot_be_captured_runs_all_the_same(
    tiny_bundle: Path, cpu_for_cuda: list[str]
) -> None:
    device = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cuda")
    latents_of(device)
    assert "text_encoder, capture 0" in cpu_for_cuda
    assert "full, capture 0" not in cpu_for_cuda
    backend: Any = device.backend
    assert "text_encoder" not in backend._sessions.captured
    assert {"full", "gated"} <= backend._sessions.captured


def test_without_cuda_graphs(tiny_bundle: Path, cpu_for_cuda: list[str]) -> None:
    options = BackendOptions(cuda_graphs=False)
    device = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cuda", options=options)
    cpu = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    np.testing.assert_array_equal(latents_of(device), latents_of(cpu))
    assert {asked.partition(", ")[2] for asked in cpu_for_cuda} == {"capture 0"}


def test_batches(tiny_bundle: Path) -> None:
    cpu = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    calls: list[dict[str, Any]] = [
        {"prompt": "a", "seed": seed, "num_inference_steps": 3 + seed, "gate_step": 2}
        for seed in range(5)
    ]
    backend = OnnxRuntimeBackend(cpu.bundle, "cuda")
    with Batcher(cpu.bundle, backend) as batcher:
        assert_equals_solo(batcher, cpu, calls)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64"])
def test_a_copy_is_an_onnx_model(dtype: str) -> None:
    model = onnx.load_from_string(identity(dtype))
    onnx.checker.check_model(model, full_check=True)
    value = np.arange(6).astype(dtype)
    (found,) = ReferenceEvaluator(model).run(None, {"source": value})
    np.testing.assert_array_equal(found, value, strict=True)


def test_rows_stay_on_the_device(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What moves between calls of changing images is never read to the host."""
    cpu = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    read = rows_read(monkeypatch)
    calls = [
        {"prompt": "a", "seed": seed, "num_inference_steps": 3 + seed, "gate_step": 2}
        for seed in range(5)
    ]
    options = BatchingOptions(max_batch=2)
    with Batcher(cpu.bundle, OnnxRuntimeBackend(cpu.bundle, "cuda"), options) as batcher:
        read.clear()  # of the warm-up
        futures = submit(batcher, calls)
        assert_equal_solo(futures, cpu, calls)
    assert read == ["(4, 8, 8)"] * len(calls)


def test_rows_go_to_the_host_when_the_device_is_full(tiny_bundle: Path) -> None:
    cpu = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    calls = [
        {"prompt": "a", "seed": seed, "num_inference_steps": 3 + seed, "gate_step": 2}
        for seed in range(3)
    ]
    backend: Any = OnnxRuntimeBackend(cpu.bundle, "cuda")
    with Batcher(cpu.bundle, backend, BatchingOptions(max_batch=1)) as batcher:
        memory = batcher._runner._input_batch._memory  # type: ignore[union-attr]
        memory._new = FullDevice  # type: ignore[attr-defined]
        assert_equals_solo(batcher, cpu, calls)


class FullDevice:
    @staticmethod
    def ortvalue_from_numpy(array: np.ndarray, device: str, number: int) -> Any:
        import onnxruntime

        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, number)

    @staticmethod
    def ortvalue_from_shape_and_type(*_: object) -> Any:
        raise RuntimeError("Failed to allocate memory")
