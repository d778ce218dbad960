"""Several callers of one pipeline: threads, callbacks, what interrupts a call, and forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.batching.batcher import Batcher

CALLS: list[dict[str, Any]] = [
    {"prompt": "a fox", "num_inference_steps": 4, "gate_step": 2, "seed": 1},
    {"prompt": "an owl", "num_inference_steps": 4, "gate_step": 2, "seed": 2},
    {"prompt": "a blue pot", "num_inference_steps": 3, "gate_step": 1, "seed": 3},
    {"prompt": "rain", "num_inference_steps": 5, "gate_step": 5, "scheduler": "euler", "seed": 4},
]


def generate(pipeline: TGatePipeline, index: int, **more: Any) -> np.ndarray:
    return np.asarray(pipeline(**CALLS[index], output_type="latent", **more).images)


def test_four_threads_generate_what_each_generates_alone(
    tiny_bundle: Path, cpu_backend: str
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, cpu_backend)
    alone = [generate(pipeline, index) for index in range(4)]

    def ten(index: int) -> list[np.ndarray]:
        return [generate(pipeline, (index + call) % 4) for call in range(10)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ten, range(4)))
    for index, pictures in enumerate(found):
        for call, picture in enumerate(pictures):
            np.testing.assert_array_equal(picture, alone[(index + call) % 4])


def test_a_call_waits_until_the_one_before_has_ended(tiny_bundle: Path) -> None:
    """Whatever the machine's speed: the second comes between the first one's steps."""
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    alone = [generate(pipeline, index) for index in range(2)]
    found: list[np.ndarray] = []
    second = threading.Thread(target=lambda: found.append(generate(pipeline, 1)))

    def meanwhile(info: Any) -> None:
        if info.step == 0:
            second.start()
            second.join(0.5)
            assert second.is_alive()

    first = generate(pipeline, 0, callback_on_step_end=meanwhile)
    second.join(60)
    np.testing.assert_array_equal(first, alone[0])
    np.testing.assert_array_equal(found[0], alone[1])


def test_pipelines_that_share_a_backend(tiny_bundle: Path, cpu_backend: str) -> None:
    one = TGatePipeline.from_bundle(tiny_bundle, cpu_backend)
    two = TGatePipeline(one.bundle, one.backend)
    alone = [generate(one, index) for index in range(2)]
    pairs = [(one, 0), (two, 1)] * 4
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda pair: generate(*pair), pairs))
    for (_, index), picture in zip(pairs, found, strict=True):
        np.testing.assert_array_equal(picture, alone[index])


def test_a_batcher_beside_a_pipeline(tiny_bundle: Path, cpu_backend: str) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, cpu_backend)
    alone = [generate(pipeline, index) for index in range(4)]
    with Batcher(pipeline.bundle, pipeline.backend) as batcher:
        futures = [
            batcher.submit(batcher.request(**CALLS[index], output_type="latent"))
            for index in (0, 1, 2, 3)
        ]
        reversed_order = [generate(pipeline, index) for index in (3, 2, 1, 0)]
        batched = [np.asarray(future.result(60).images) for future in futures]
    for index in range(4):
        for found in (reversed_order[3 - index], batched[index]):
            # Kernels of other batches round in other ways.
            assert np.abs(found - alone[index]).max() <= 1e-4 * np.abs(alone[index]).max()


def test_a_callback_cannot_call_its_pipeline(tiny_bundle: Path) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    alone = generate(pipeline, 0)
    with pytest.raises(InvalidRequestError, match="called the pipeline that it is called by"):
        generate(pipeline, 0, callback_on_step_end=lambda _info: generate(pipeline, 1))
    other = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    found = generate(pipeline, 0, callback_on_step_end=lambda _info: generate(other, 1))
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_call_that_is_interrupted_ends_its_turn(
    tiny_bundle: Path, error: type[BaseException]
) -> None:
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    alone = generate(pipeline, 0)

    def stop(_info: Any) -> None:
        raise error

    with pytest.raises(error):
        generate(pipeline, 1, callback_on_step_end=stop)
    with ThreadPoolExecutor(1) as pool:  # a lock that is still held would let its owner pass
        np.testing.assert_array_equal(pool.submit(generate, pipeline, 0).result(60), alone)


# In a process of its own: pytest's has threads of many libraries.
FORK = """
import os, signal, sys, threading, warnings
import numpy as np
from tgate_export import TGatePipeline
from tgate_export.common.errors import TGateError
warnings.simplefilter("ignore")
path, backend, when = sys.argv[1:]
call = dict(prompt="a fox", num_inference_steps=3, gate_step=2, seed=1, output_type="latent")
load = lambda: TGatePipeline.from_bundle(path, backend)
pipeline = load()
first = pipeline(**call).images

def child(generate):
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        try:
            print("apart", float(np.abs(generate() - first).max()), flush=True)
        except TGateError as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

def again():
    return pipeline(**call).images

def another():
    global pipeline
    del pipeline  # without waiting for threads that are gone
    return load()(**call).images

def from_a_callback(info):
    if info.step == 1:
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            return
        print("status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)

if when == "idle":
    child(again)
elif when == "another":
    child(another)
elif when == "running":  # another thread has the turn, which nobody ends in the child
    began, end = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: pipeline(**call, callback_on_step_end=lambda _: (began.set(), end.wait()))
    )
    thread.start()
    began.wait()
    child(again)
    end.set()
    thread.join()
elif when == "callback":
    parent = os.getpid()
    try:
        pipeline(**call, callback_on_step_end=from_a_callback)
    except TGateError as error:
        print(type(error).__name__, error, flush=True)
    if os.getpid() != parent:
        os._exit(0)
"""


def fork(bundle: Path, backend: str, when: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(bundle), backend, when],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said, status = done.stdout.splitlines()
    assert status == "status 0"
    return said.split(" ", 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize("when", ["idle", "another", "running"])
def test_a_forked_child_runs_or_is_refused_at_once(
    tiny_bundle: Path, cpu_backend: str, when: str
) -> None:
    if cpu_backend == "openvino" and when == "running":
        pytest.skip("refused as when it is idle")
    kind, rest = fork(tiny_bundle, cpu_backend, when)
    if cpu_backend == "openvino":
        assert kind == "BackendError"
        assert "load the pipeline only in the child, start processes by 'spawn'" in rest
    else:
        assert (kind, rest) == ("apart", "0.0")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_run_does_not_go_on_in_a_child(tiny_bundle: Path) -> None:
    kind, rest = fork(tiny_bundle, "onnxruntime:cpu", "callback")
    assert (kind, rest) == (
        "InvalidRequestError",
        "a callback forked the process: the run goes on in the parent alone",
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_batcher_takes_nothing_in_a_child(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tgate_export.runtime.batching.request_state import ClosedError

    def child(batcher: Batcher, attempt: Callable[[], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: batcher._process + 1)
            attempt()

    with Batcher.from_bundle(tiny_bundle, "onnxruntime:cpu") as batcher:
        request = batcher.request(**CALLS[0])
        with pytest.raises(ClosedError, match="make a batcher in this process"):
            child(batcher, lambda: batcher.submit(request))
        child(batcher, batcher.close)
        batcher.submit(request).result(60)  # in the parent it goes on
