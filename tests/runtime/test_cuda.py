"""The wrapper of the CUDA runtime, and whether the emulation is like what it stands for."""

from __future__ import annotations

import enum
import gc
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.emulation import tensorrt as emulated_tensorrt
from tests.support.emulation.cuda import CudaEmulation
from tests.support.emulation.install import Emulation, install
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.backends.cuda import Block, Cuda, Event, Graph


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    return install(monkeypatch)


def test_copies_there_and_back(gpu: Emulation) -> None:
    cuda = Cuda("tensorrt")
    block, other = cuda.allocate(16, "a test"), cuda.allocate(16, "a test")
    sent, received = np.arange(4, dtype=np.float32), np.zeros(4, np.float32)
    cuda.upload(block.address, sent)
    sent[:] = 9  # the caller may
    cuda.copy(other.address, block.address, 16)
    cuda.download(received, other.address)
    np.testing.assert_array_equal(received, [0, 1, 2, 3])
    cuda.fill_zero(other)
    cuda.download(received, other.address)
    np.testing.assert_array_equal(received, 0)


def test_memory_is_freed_with_its_last_reference(gpu: Emulation) -> None:
    block = Cuda("tensorrt").allocate(16, "a test")
    assert gpu.cuda.live == {block.address: 16}
    del block
    gc.collect()
    assert not gpu.cuda.live


def test_a_capture_runs_nothing_until_it_is_launched(gpu: Emulation) -> None:
    cuda = Cuda("tensorrt")
    block = cuda.allocate(4, "a test")
    value = np.zeros(1, np.float32)
    cuda.upload(block.address, np.ones(1, np.float32))
    graph = cuda.capture(lambda: cuda.fill_zero(block))
    cuda.download(value, block.address)
    assert value == 1
    graph.launch()
    cuda.download(value, block.address)
    assert value == 0


def test_what_cannot_be_captured(gpu: Emulation) -> None:
    cuda = Cuda("tensorrt")
    with pytest.raises(BackendError, match=r"CUDA could not run what was queued: .*Capture"):
        cuda.capture(cuda.synchronize)
    with pytest.raises(KeyError):
        cuda.capture(lambda: {}["x"])
    cuda.synchronize()  # the stream is in order again
    assert not gpu.cuda.graphs


def test_times_need_waiting(gpu: Emulation) -> None:
    cuda = Cuda("tensorrt")
    start, end = cuda.record(), cuda.record()
    with pytest.raises(BackendError, match="could not read a time"):
        cuda.seconds(start, end)
    cuda.synchronize()
    assert cuda.seconds(start, end) == 0


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"driver": 0}, r"no CUDA driver on this machine: install NVIDIA's driver, or use"),
        (
            {"driver": 12040},
            r"too old \(it supports CUDA 12.4, and 13.0 .* update .*cuda-bindings==12\.\*",
        ),
        ({"devices": 0}, r"no CUDA GPU \(cudaErrorNoDevice\): check nvidia-smi and CUDA_VISIBLE"),
    ],
)
def test_machines_that_cannot_run_cuda(
    gpu: Emulation, machine: dict[str, int], message: str
) -> None:
    vars(gpu.cuda).update(machine)
    with pytest.raises(BackendError, match=message):
        Cuda("tensorrt")


def test_a_newer_runtime_of_the_same_generation_is_fine(gpu: Emulation) -> None:
    gpu.cuda.driver, gpu.cuda.version = 13000, 13050
    assert Cuda("tensorrt").compute_capability() == "8.9"


def test_cuda_bindings_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(BackendError, match=r"not installed: pip install 'tensorrt>="):
        Cuda("tensorrt")


def parameters(function: Any) -> list[str]:
    """Names of a function's parameters; of a compiled one, from its docstring."""
    line = str(function.__doc__).splitlines()[0]
    inside = line.partition("(")[2].rpartition(")")[0]
    return [part.split(":")[0].split()[-1] for part in inside.split(",") if part]


def test_the_emulated_runtime_has_the_names_of_the_real_one() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    emulation = CudaEmulation()
    names = [name for name in dir(emulation) if name.startswith("cuda") and name != "cuda"]
    assert len(names) > 20
    for name in names:
        real, ours = getattr(runtime, name), getattr(emulation, name)
        if isinstance(ours, type) and issubclass(ours, enum.IntEnum):
            assert {member.name: int(getattr(real, member.name)) for member in ours} == {
                member.name: int(member) for member in ours
            }
        elif callable(ours):
            assert parameters(real) == list(inspect.signature(ours).parameters), name
        else:
            assert int(real) == ours


def test_the_real_runtime_takes_what_we_pass() -> None:
    """Without a driver every call fails, after its arguments were converted."""
    real = pytest.importorskip("cuda.bindings.runtime")
    if real.cudaDriverGetVersion()[1]:
        pytest.skip("this machine has a CUDA driver")
    cuda = Cuda.__new__(Cuda)  # as after a probe that found a GPU
    cuda.runtime, cuda.stream, cuda._freed = real, 1, deque()
    block = Block(256, 4, real.cudaFree)
    event, value = Event(real, real.cudaEvent_t(1)), np.zeros(1, np.float32)
    graph = Graph(cuda, real.cudaGraphExec_t(1))
    calls: list[Callable[[], object]] = [
        cuda.compute_capability,
        lambda: cuda.allocate(4, "a test"),
        lambda: cuda.allocate_in_stream(4, "a test"),
        lambda: cuda.check(real.cudaFreeAsync(256, cuda.stream), "x"),
        lambda: cuda.fill_zero(block),
        lambda: cuda.copy(256, 512, 4),
        lambda: cuda.upload(256, value),
        lambda: cuda.download(value, 256),
        cuda.synchronize,
        cuda.record,
        lambda: cuda.seconds(event, event),
        lambda: cuda.capture(lambda: None),
        graph.launch,
        lambda: cuda.check(real.cudaStreamCreateWithFlags(real.cudaStreamNonBlocking), "x"),
        lambda: cuda.check(real.cudaStreamEndCapture(1), "x"),
        lambda: cuda.check(real.cudaGraphInstantiate(real.cudaGraph_t(1), 0), "x"),
        lambda: cuda.check(real.cudaEventRecord(event.handle, 1), "x"),
        lambda: cuda.check(real.cudaStreamDestroy(1), "x"),
    ]
    for call in calls:
        with pytest.raises(BackendError, match=r"CUDA driver version is insufficient .*Driver\)$"):
            call()
    assert cuda.free_bytes() == 0


def test_the_emulated_tensorrt_has_the_names_of_the_real_one() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    pairs = {
        emulated_tensorrt.Engine: trt.ICudaEngine,
        emulated_tensorrt.RuntimeConfig: trt.IRuntimeConfig,
        emulated_tensorrt.Context: trt.IExecutionContext,
        emulated_tensorrt.ILogger: trt.ILogger,
    }
    module = emulated_tensorrt.TensorRTEmulation("tensorrt_rtx", CudaEmulation()).module()
    pairs |= {getattr(module, n): getattr(trt, n) for n in ("Refitter", "OnnxParserRefitter")}
    for ours, real in pairs.items():
        for name in vars(ours):
            if not name.startswith("_"):
                assert hasattr(real, name), f"{real.__name__} has no {name}"
    for name in ("DynamicShapesKernelSpecializationStrategy", "EngineStat", "TensorIOMode",
                 "DataType", "ExecutionContextAllocationStrategy"):  # fmt: skip
        for member in getattr(module, name):
            assert hasattr(getattr(trt, name), member.name)
    instance = {"is_stream_capturable", "streamable_weights_size", "weight_streaming_budget_v2"}
    assert all(
        hasattr(trt.IExecutionContext, name) or hasattr(trt.ICudaEngine, name) for name in instance
    )
    assert hasattr(trt.IRuntimeConfig, "dynamic_shapes_kernel_specialization_strategy")
    assert trt.__version__
