"""What goes wrong for one request is that request's alone, and nobody waits for ever."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.solo import assert_equal_solo, batcher_of, submit
from tgate_export import TGatePipeline
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import TGateError
from tgate_export.runtime.backends import BackendError, select
from tgate_export.runtime.backends.onnxruntime_memory import OrtMemory
from tgate_export.runtime.batching import (
    BatchedOutput,
    Batcher,
    BatchingOptions,
    ClosedError,
    DeadlineError,
)
from tgate_export.runtime.batching import batcher as batcher_module
from tgate_export.runtime.batching.request_state import RequestState
from tgate_export.runtime.input_batch import InputBatch


class Panic(BaseException):
    """As the panics of libraries in Rust, no `Exception`."""


@pytest.fixture(scope="module")
def pipeline(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


@pytest.fixture
def batcher(pipeline: TGatePipeline) -> Iterator[Batcher]:
    with batcher_of(pipeline) as batcher:
        yield batcher


def calls(seeds: range) -> list[dict[str, Any]]:
    return [{"prompt": "a", "num_inference_steps": 3, "seed": seed} for seed in seeds]


@pytest.mark.parametrize("error", [MemoryError("64 images"), Panic("index out of bounds")])
def test_a_result_that_cannot_be_made(
    pipeline: TGatePipeline, batcher: Batcher, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    real = RequestState.output

    def output(self: RequestState, manifest: Manifest, now: float) -> BatchedOutput:
        if self.request.seed == 13:
            raise error
        return real(self, manifest, now)

    monkeypatch.setattr(RequestState, "output", output)
    (bad,) = submit(batcher, calls(range(13, 14)))
    others = submit(batcher, calls(range(3)))
    found = bad.exception(60)
    assert isinstance(found, MemoryError | TGateError)
    assert str(error) in str(found)
    assert_equal_solo(others, pipeline, calls(range(3)))
    assert batcher.stats().outcomes == {"done": 3, "failed": 1}
    assert batcher.alive


def test_callbacks_that_panic(pipeline: TGatePipeline, batcher: Batcher) -> None:
    def panic(_: object) -> None:
        raise Panic("in a callback")

    on_step = batcher.submit(batcher.request("a", num_inference_steps=3), on_step=panic)
    with pytest.raises(TGateError, match="Panic: in a callback"):
        on_step.result(60)
    (done,) = submit(batcher, calls(range(1)))
    done.add_done_callback(panic)
    assert_equal_solo(submit(batcher, calls(range(3))), pipeline, calls(range(3)))
    assert done.exception(60) is None
    assert batcher.alive


def test_memory_that_runs_out_between_calls(
    pipeline: TGatePipeline, batcher: Batcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(*_: object) -> None:
        monkeypatch.undo()
        raise MemoryError("choosing")

    monkeypatch.setattr("tgate_export.runtime.batching.batcher.choose", choose)
    (unlucky,) = submit(batcher, calls(range(1)))
    with pytest.raises(MemoryError, match="choosing"):
        unlucky.result(60)
    assert_equal_solo(submit(batcher, calls(range(3))), pipeline, calls(range(3)))


def test_rows_are_copied_anew_after_a_failure(
    pipeline: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that failed half-way must not be taken for what the buffer held before."""
    random = np.random.default_rng(1)
    unlucky, lucky = random.standard_normal((2, 1, 77, 32), dtype=np.float32)
    real = OrtMemory.write_rows
    begun: list[Any] = []

    def write_rows(self: OrtMemory, buffer: str, rows: Any) -> None:
        if buffer == "prompt_embeds" and np.array_equal(rows[0], unlucky[0]):
            begun.append(buffer)
            if len(begun) == 2:  # the other one's row has been there between
                real(self, buffer, {0: np.zeros_like(unlucky[0])})
                raise MemoryError("half-way")
        real(self, buffer, rows)

    monkeypatch.setattr(OrtMemory, "write_rows", write_rows)
    run = {"num_inference_steps": 20, "gate_step": 20, "seed": 1}
    bad, good = (
        {"prompt_embeds": embeds, "negative_prompt_embeds": embeds, **run}
        for embeds in (unlucky, lucky)
    )
    with batcher_of(pipeline, BatchingOptions(max_batch=1)) as batcher:
        fails, lives = submit(batcher, [bad, good])  # they take turns
        with pytest.raises(MemoryError, match="half-way"):
            fails.result(60)
        monkeypatch.undo()
        assert_equal_solo([lives], pipeline, [good])


def test_max_in_flight_bounds_images(pipeline: TGatePipeline) -> None:
    """Also those of one request, which others overtake."""
    most = 0

    def look(_: object) -> None:
        nonlocal most
        most = max(most, len(batcher._flight))

    big = {"prompt": "a", "num_inference_steps": 3, "num_images_per_prompt": 24, "seed": 5}
    with batcher_of(pipeline, BatchingOptions(max_batch=2, max_in_flight=3)) as batcher:
        order: list[str] = []
        first = batcher.submit(batcher.request(output_type="latent", **big), on_step=look)
        stats = batcher.stats()
        assert stats.waiting + stats.in_flight == 24
        later = batcher.submit(batcher.request("b", num_inference_steps=1, seed=0))
        for name, future in (("first", first), ("later", later)):
            future.add_done_callback(lambda _, name=name: order.append(name))
        assert_equal_solo([first], pipeline, [big])
        later.result(60)
        assert order == ["later", "first"]
        stats = batcher.stats()
    assert most == 3
    assert (stats.waiting, stats.in_flight) == (0, 0)


def test_a_request_that_has_half_begun_can_be_cancelled(pipeline: TGatePipeline) -> None:
    begun = threading.Event()
    with batcher_of(pipeline, BatchingOptions(max_batch=2, max_in_flight=3)) as batcher:
        request = batcher.request("a", num_inference_steps=50, num_images_per_prompt=20)
        future = batcher.submit(request, on_step=lambda _: begun.set())
        assert begun.wait(60)
        assert future.cancel()
        assert_equal_solo(submit(batcher, calls(range(3))), pipeline, calls(range(3)))
        stats = batcher.stats()
    assert (stats.waiting, stats.in_flight) == (0, 0)
    assert stats.outcomes == {"done": 3, "cancelled": 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_refused_at_once(batcher: Batcher) -> None:
    request = batcher.request("a", num_inference_steps=1)
    with batcher._changed:  # as another thread may hold it when the process forks
        child = os.fork()
        if child == 0:
            status = 3
            try:
                batcher.submit(request)
            except ClosedError as error:
                status = 0 if "forked" in str(error) else 4
                batcher.close()
            finally:
                os._exit(status)
    until = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    batcher.submit(request).result(60)


def endless(bundle: Path) -> None:
    """Let a bundle's sampler loop for ever, as anyone can who makes one."""
    file = bundle / "graphs" / "sampler.onnx"
    model = onnx.load(file)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Neg", ["v"], ["w"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []),
         helper.make_tensor_value_info("v", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
    )  # fmt: skip
    count = helper.make_tensor("n", TensorProto.INT64, [], [2**62])
    true = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    nodes = [
        helper.make_node("Constant", [], ["n"], value=count),
        helper.make_node("Constant", [], ["c"], value=true),
        helper.make_node("Loop", ["n", "c", "sample"], ["next_sample"], body=body),
        helper.make_node("Identity", ["sample"], ["denoiser_input"]),
        helper.make_node("Identity", ["history"], ["next_history"]),
    ]
    graph = helper.make_graph(nodes, "g", list(model.graph.input), list(model.graph.output))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    file.write_bytes(made.SerializeToString())
    manifest = json.loads((bundle / "manifest.json").read_text())
    content = file.read_bytes()
    manifest["files"]["graphs/sampler.onnx"] = {
        "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content),
    }  # fmt: skip
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_call_that_never_ends_is_stopped(
    tiny_bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endless(tiny_bundle_copy)
    monkeypatch.setattr(Batcher, "_warm_up", lambda _: None)  # it would not end either

    def running() -> None:
        """Wait until the sampler runs: nothing else takes more than a moment once it is loaded."""
        until = time.monotonic() + 60
        encoded = batcher.stats().stages["encode"].calls if batcher.stats().stages else 0
        while time.monotonic() < until:
            stages = batcher.stats().stages
            if "encode" in stages and stages["encode"].calls > encoded and batcher._running:
                time.sleep(0.2)
                return
            time.sleep(0.005)
        pytest.fail("no call runs")

    def begin(seed: int, **options: Any) -> Future[BatchedOutput]:
        future = batcher.submit(batcher.request("a", num_inference_steps=1, seed=seed), **options)
        running()
        return future

    batcher = Batcher.from_bundle(tiny_bundle_copy, "onnxruntime:cpu")
    cancelled = begin(0)
    assert batcher._running
    cancelled.cancel()
    late = begin(1, deadline=1.0)  # another one begins, so the first call has ended
    started = time.monotonic()
    with pytest.raises(DeadlineError):
        late.result(20)
    assert time.monotonic() - started < 5
    open_ = begin(2)
    started = time.monotonic()
    batcher.close(drain=False)
    assert time.monotonic() - started < 5
    with pytest.raises(ClosedError):
        open_.result(0)
    assert not batcher.alive


def test_a_call_that_cannot_be_stopped_keeps_nobody_waiting(
    pipeline: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batcher_module, "_STOP_SECONDS", 0.2)
    held, go_on = threading.Event(), threading.Event()

    def denoise(*_: object) -> None:
        held.set()
        assert go_on.wait(60)

    batcher = batcher_of(pipeline)
    monkeypatch.setattr(InputBatch, "denoise", denoise)
    (late,) = (batcher.submit(batcher.request("a", num_inference_steps=1), deadline=0.5),)
    (open_,) = submit(batcher, calls(range(1)))
    assert held.wait(60)
    with pytest.raises(DeadlineError):
        late.result(10)
    batcher.close(drain=False)
    with pytest.raises(ClosedError):
        open_.result(0)
    go_on.set()
    batcher._thread.join(10)
    assert not batcher.alive


def test_openvino_is_stopped_between_nodes(tiny_bundle: Path) -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset13

    backend = select("openvino", open_bundle(tiny_bundle))
    found = parameter = opset13.parameter([512, 512], np.float32)
    weights = opset13.constant(np.eye(512, dtype=np.float32))
    for _ in range(300):  # some tenths of a second
        found = opset13.tanh(opset13.matmul(found, weights, False, False))
    compiled = ov.compile_model(ov.Model([found], [parameter], "long"), "CPU")
    request = compiled.create_infer_request()
    threading.Timer(0.05, backend.stop).start()
    with pytest.raises(RuntimeError, match="cancel"):
        backend._run(request)
    with pytest.raises(BackendError, match="stopped"):
        backend._run(request)
    backend.resume()
    backend._run(request)
