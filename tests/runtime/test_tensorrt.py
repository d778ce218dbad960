"""Whole runs on plans, on an emulated GPU: the same pictures, and nothing but launches between.

The emulation queues everything until somebody waits, and fills freed memory and the activations
that plans share with NaN; the graphs are the bundle's own, run by ONNX Runtime on the addresses
that were bound.
"""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.emulation.cuda import cudaError_t
from tests.support.emulation.install import Emulation, install
from tests.support.emulation.plans import write_emulated
from tests.support.solo import assert_equals_solo
from tgate_export import TGatePipeline
from tgate_export.bundle.plans import Library, PlanSettings
from tgate_export.runtime.backends import select
from tgate_export.runtime.backends.base import BackendError, BackendOptions
from tgate_export.runtime.batching import Batcher
from tgate_export.runtime.step_info import StepInfo

# The emulation runs them so, too.
pytestmark = pytest.mark.usefixtures("plain_sessions")

LIBRARIES: tuple[Library, ...] = ("tensorrt", "tensorrt-rtx")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    emulation = install(monkeypatch)
    yield emulation
    gc.collect()
    assert not emulation.cuda.live, "device memory was left behind"
    assert not emulation.cuda.graphs, "CUDA graphs were left behind"
    assert not emulation.cuda.events, "events were left behind"


@pytest.fixture(scope="module")
def planned(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with plans of both libraries; shared, so not to be changed."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("planned") / "bundle"))
    for library in LIBRARIES:
        write_emulated(bundle, library, name=library)
    return bundle


@pytest.fixture(scope="module")
def reference(tiny_bundle: Path) -> TGatePipeline:
    return TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")


def open_pipeline(bundle: Path, library: Library = "tensorrt-rtx", **options: Any) -> TGatePipeline:
    options_ = BackendOptions(**options)
    return TGatePipeline.from_bundle(bundle, library, check_hashes=False, options=options_)


def latents_of(pipeline: TGatePipeline, prompt: Any = "a", **kwargs: Any) -> np.ndarray:
    defaults = {"num_inference_steps": 5, "gate_step": 2, "seed": 5, "output_type": "latent"}
    return np.asarray(pipeline(prompt, **(defaults | kwargs)).images)


RUNS: list[dict[str, Any]] = [
    {},
    {"scheduler": "euler", "gate_step": 1},
    {"scheduler": "dpm++2m", "num_inference_steps": 7, "gate_step": 4},
    {"scheduler": "pndm", "gate_step": 3, "num_images_per_prompt": 2},
    {"gate_step": 99, "guidance_scale": 3.0},
    {"prompt": ["a", "b c", "d"], "negative_prompt": ["x", "", "y z"]},
    {},
    {"num_images_per_prompt": 10},  # two batches: 8, the most a plan takes, and 2
    {"seed": 6},
]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_same_latents_as_onnxruntime(
    gpu: Emulation, planned: Path, reference: TGatePipeline, library: Library, cuda_graphs: bool
) -> None:
    """One pipeline through changing samplers, gates, batches and shapes, and back again."""
    pipeline = open_pipeline(planned, library, cuda_graphs=cuda_graphs)
    for run in RUNS:
        expected = latents_of(reference, **run)
        np.testing.assert_array_equal(latents_of(pipeline, **run), expected, err_msg=str(run))
        np.testing.assert_array_equal(latents_of(pipeline, **run), expected, err_msg=f"2nd {run}")
    assert ("cudaGraphLaunch" in gpu.cuda.calls) == cuda_graphs


def test_plans_of_one_image_make_several(
    gpu: Emulation, tiny_bundle_copy: Path, reference: TGatePipeline
) -> None:
    write_emulated(tiny_bundle_copy, batch=(1, 1, 1))
    found = latents_of(open_pipeline(tiny_bundle_copy), ["a", "b c", "d"])
    expected = latents_of(reference, ["a", "b c", "d"])
    # Other sums in the kernels of another batch.
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_same_pictures_as_onnxruntime(
    gpu: Emulation, planned: Path, reference: TGatePipeline
) -> None:
    pipeline = open_pipeline(planned)
    run = {"output_type": "np", "num_images_per_prompt": 2}
    np.testing.assert_array_equal(latents_of(pipeline, **run), latents_of(reference, **run))


@pytest.mark.slow  # builds a bundle of its own
def test_dynamic_sizes_in_half_precision(
    gpu: Emulation, tiny_pipeline_dir: Path, tmp_path: Path
) -> None:
    from tgate_export.build.build import build_bundle
    from tgate_export.bundle.manifest import Range

    side = Range(min=16, opt=16, max=32)
    bundle = build_bundle(
        str(tiny_pipeline_dir), size=(side, side), precision="fp16", out=tmp_path / "bundle"
    ).path
    write_emulated(bundle, size=(16, 16, 32))
    cpu, pipeline = TGatePipeline.from_bundle(bundle, "onnxruntime:cpu"), open_pipeline(bundle)
    for height, width in ((16, 16), (32, 16), (32, 32), (16, 16)):
        run = {"height": height, "width": width}
        np.testing.assert_array_equal(latents_of(pipeline, **run), latents_of(cpu, **run))


def test_no_waiting_and_no_memory_calls_between_steps(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline, num_inference_steps=20)
    seen: list[dict[str, int]] = []
    pipeline(
        "a", num_inference_steps=20, gate_step=2, seed=5, output_type="latent",
        callback_on_step_end=lambda _info: seen.append(dict(gpu.cuda.calls)),
    )  # fmt: skip
    for before, after in itertools.pairwise(seen):
        made = {name: after[name] - before.get(name, 0) for name in after}
        assert {name: count for name, count in made.items() if count} == {
            "cudaEventCreate": 3,
            "cudaEventRecord": 3,
            "cudaMemcpyAsync": 2,  # the step's timestep and weights
            "cudaGraphLaunch": 2,
        }
    ran = [graph for graph, _ in gpu.ran()[-2 * 20 :]]
    assert ran == ["full", "sampler"] * 2 + ["gated", "sampler"] * 18


def test_one_capture_for_each_graph_and_addresses(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline, num_inference_steps=20)
    # sampler: two directions; text encoder, full, gated, decoder: one each
    assert gpu.cuda.calls["cudaGraphInstantiate"] == 6
    launched = gpu.cuda.calls["cudaGraphLaunch"]
    assert launched == 2 + 2 * 20
    latents_of(pipeline, num_inference_steps=20, seed=9, scheduler="euler", prompt="other")
    assert gpu.cuda.calls["cudaGraphInstantiate"] == 6
    allocated = gpu.cuda.calls["cudaMalloc"]
    latents_of(pipeline, num_inference_steps=10, gate_step=7)
    assert gpu.cuda.calls["cudaGraphInstantiate"] == 6
    assert gpu.cuda.calls["cudaMalloc"] == allocated
    latents_of(pipeline, num_inference_steps=31, gate_step=7)
    assert gpu.cuda.calls["cudaGraphInstantiate"] == 6
    assert gpu.cuda.calls["cudaMalloc"] == allocated + 2  # timesteps and weights of more steps
    latents_of(pipeline, num_inference_steps=30, gate_step=99)  # without the buffers of `gated`
    assert gpu.cuda.calls["cudaGraphInstantiate"] == 6 + 5


def test_caches_are_the_same_memory_on_both_sides(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline)
    addresses = {graph: bound for graph, bound in gpu.ran() if graph in ("full", "gated")}
    caches = list(pipeline.manifest.caches)
    assert len(caches) == 3  # two of attention and one of guidance
    for tensor in caches:
        assert addresses["full"][tensor] == addresses["gated"][tensor]
    all_bound = {address for _, bound in gpu.ran() for address in bound.values()}
    assert all(address % 256 == 0 for address in all_bound)


def test_callback_reads_the_step_it_was_called_for(
    gpu: Emulation, planned: Path, reference: TGatePipeline
) -> None:
    def latents_by_step(pipeline: TGatePipeline) -> list[np.ndarray]:
        seen: list[np.ndarray] = []

        def record(info: StepInfo) -> None:
            seen.append(info.latents().copy())  # at once: a later wait would hide a missing one

        latents_of(pipeline, callback_on_step_end=record)
        return seen

    found, expected = latents_by_step(open_pipeline(planned)), latents_by_step(reference)
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


def test_timings_are_the_devices(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    run = {"num_inference_steps": 4, "gate_step": 2, "seed": 0}
    timings = pipeline("a", **run, output_type="np").timings
    # The emulated device takes 1 ms a graph.
    assert timings.text_encoder == pytest.approx(2e-3)
    assert timings.vae_decoder == pytest.approx(1e-3)
    assert [step.phase for step in timings.steps] == ["full"] * 2 + ["gated"] * 2
    assert all(
        (step.denoiser, step.sampler) == pytest.approx((1e-3, 1e-3)) for step in timings.steps
    )
    assert pipeline("a", **run, output_type="latent").timings.vae_decoder == 0


def test_an_exception_in_the_callback_ends_the_run(
    gpu: Emulation, planned: Path, reference: TGatePipeline
) -> None:
    pipeline = open_pipeline(planned)

    def stop(_info: StepInfo) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline("b", num_inference_steps=5, gate_step=2, callback_on_step_end=stop)
    np.testing.assert_array_equal(latents_of(pipeline), latents_of(reference))


def test_memory_report(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline)
    report = pipeline.backend.memory_report()
    assert report is not None
    graphs = pipeline.manifest.graphs
    assert report.weights == {
        f"tensorrt-rtx/{graph}": 4 * spec.parameters for graph, spec in graphs.items()
    }
    # What the device has given out, the emulated weights aside.
    pipeline.backend.synchronize()
    assert report.activations + report.buffers == sum(gpu.cuda.live.values())
    assert report.as_dict()["total_bytes"] == sum(gpu.cuda.live.values()) + sum(
        report.weights.values()
    )
    small = report.activations
    latents_of(pipeline, num_images_per_prompt=4)
    grown = pipeline.backend.memory_report()
    assert grown is not None
    assert grown.activations > small
    latents_of(pipeline)
    assert grown.activations == pipeline.backend.memory_report().activations  # type: ignore[union-attr]


def test_stripped_plans_get_the_bundles_weights(
    gpu: Emulation, tiny_bundle_copy: Path, reference: TGatePipeline
) -> None:
    write_emulated(tiny_bundle_copy, settings=PlanSettings(weights_stripped=True))
    pipeline = open_pipeline(tiny_bundle_copy)
    np.testing.assert_array_equal(latents_of(pipeline), latents_of(reference))


def test_weight_streaming(gpu: Emulation, tiny_bundle_copy: Path, reference: TGatePipeline) -> None:
    write_emulated(tiny_bundle_copy, settings=PlanSettings(weight_streaming=True))
    pipeline = open_pipeline(tiny_bundle_copy, weight_streaming_budget=1000)
    np.testing.assert_array_equal(latents_of(pipeline), latents_of(reference))
    report = pipeline.backend.memory_report()
    assert report is not None
    assert max(report.weights.values()) == 1000
    assert "cudaGraphLaunch" not in gpu.cuda.calls


def test_weight_streaming_needs_plans_built_for_it(gpu: Emulation, planned: Path) -> None:
    with pytest.raises(BackendError, match=r"not built to stream weights.*weight_streaming=True"):
        latents_of(open_pipeline(planned, weight_streaming_budget=1000))


def test_one_shape_goes_before_a_range(gpu: Emulation, tiny_bundle_copy: Path) -> None:
    write_emulated(tiny_bundle_copy, name="any", batch=(1, 2, 8))
    write_emulated(tiny_bundle_copy, name="two", batch=(2, 2, 2))
    pipeline = open_pipeline(tiny_bundle_copy)
    for images, used in ((2, {"two"}), (3, {"two", "any"})):
        latents_of(pipeline, num_images_per_prompt=images)
        report = pipeline.backend.memory_report()
        assert report is not None
        assert {name.partition("/")[0] for name in report.weights} == used


def test_out_of_memory_says_what_was_needed_and_free(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    gpu.cuda.memory_limit = 1 << 20
    with pytest.raises(
        BackendError, match=r"out of GPU memory: .* needs 0\.\d\d GiB, 0\.00 GiB is free: "
    ):
        latents_of(pipeline, num_images_per_prompt=8)
    gpu.cuda.memory_limit = 1 << 28
    assert np.isfinite(latents_of(pipeline)).all()


def test_a_shapes_memory_is_freed_before_the_next_is_allocated(
    gpu: Emulation, planned: Path
) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline, num_images_per_prompt=8)
    gpu.cuda.memory_limit = sum(gpu.cuda.live.values()) + 4096
    latents_of(pipeline, num_images_per_prompt=7)


def test_out_of_memory_while_loading(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    gpu.tensorrt["tensorrt_rtx"].refuse = "CUDA: out of memory (2)"
    with pytest.raises(BackendError, match=r"out of GPU memory: .*\.plan .* is free"):
        latents_of(pipeline)


def test_a_launch_that_cannot_be_captured(
    gpu: Emulation, planned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def invalidated(_stream: int) -> tuple[cudaError_t, None]:
        return cudaError_t.cudaErrorStreamCaptureInvalidated, None

    monkeypatch.setattr(gpu.cuda, "cudaStreamEndCapture", invalidated)
    with pytest.raises(
        BackendError, match=r"'text_encoder' cannot become a CUDA graph .*: use cuda_graphs=False$"
    ):
        latents_of(open_pipeline(planned))


def test_a_plan_that_does_not_deserialise(gpu: Emulation, tiny_bundle_copy: Path) -> None:
    folder = write_emulated(tiny_bundle_copy)
    plan = folder / "text_encoder.plan"
    plan.write_bytes(bytes(plan.stat().st_size))
    with pytest.raises(BackendError) as caught:
        latents_of(open_pipeline(tiny_bundle_copy))
    assert "text_encoder.plan cannot be loaded (magic tag does not match)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("graph", "tensor", "change", "reason"),
    [
        ("gated", "cross_cache_1", (None, "HALF"), "the plan has float16, the buffer float32"),
        ("gated", "cross_cache_0", ("OUTPUT", None), "it is an output of the plan, not an input"),
        ("full", "cross_cache_0", ("INPUT", None), "it is an input of the plan, not an output"),
    ],
)
def test_a_plan_of_other_tensors_is_refused(
    gpu: Emulation, tiny_bundle_copy: Path, graph: str, tensor: str, change: Any, reason: str
) -> None:
    write_emulated(tiny_bundle_copy, alter={graph: {tensor: change}})
    with pytest.raises(BackendError) as caught:
        latents_of(open_pipeline(tiny_bundle_copy))
    assert str(caught.value) == f"graph {graph!r}: tensor {tensor!r} cannot be bound: {reason}"


def test_a_host_array_of_another_shape_is_refused(gpu: Emulation, planned: Path) -> None:
    pipeline = open_pipeline(planned)
    latents_of(pipeline)
    batch = pipeline._runner._input_batch
    assert batch is not None
    with pytest.raises(ValueError, match="'timestep' takes float32"):
        batch._memory.write("timestep", np.zeros(2, np.float32))


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_in_flight_batches_equal_solo_runs(
    gpu: Emulation, planned: Path, reference: TGatePipeline, cuda_graphs: bool
) -> None:
    """Plans have one batch at a time: calls are padded to it, and nobody reads the rest."""
    options = BackendOptions(cuda_graphs=cuda_graphs)
    calls = [
        {"prompt": f"x{seed}", "num_inference_steps": 3 + seed % 4, "gate_step": 1 + seed % 5,
         "scheduler": ("ddim", "euler-a", "pndm")[seed % 3], "seed": seed}
        for seed in range(11)
    ]  # fmt: skip
    bundle = reference.bundle.__class__(planned, reference.manifest)
    with Batcher(bundle, select("tensorrt-rtx", bundle, options)) as batcher:
        assert batcher.max_batch == 8
        assert_equals_solo(batcher, reference, calls)
        captured = len(gpu.cuda.graphs)
    assert captured == (
        6 if cuda_graphs else 0
    )  # one a graph, the sampler's two, whatever the batch


def test_rows_go_to_the_host_when_the_device_is_full(
    gpu: Emulation, planned: Path, reference: TGatePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_size: int, _stream: int) -> tuple[cudaError_t, None]:
        return cudaError_t.cudaErrorMemoryAllocation, None

    calls = [{"prompt": "a", "num_inference_steps": 3 + seed, "seed": seed} for seed in range(9)]
    with Batcher.from_bundle(planned, "tensorrt-rtx", check_hashes=False) as batcher:
        monkeypatch.setattr(gpu.cuda, "cudaMallocAsync", full)
        assert_equals_solo(batcher, reference, calls)


def test_plans_of_one_image_serve_many(
    gpu: Emulation, tiny_bundle_copy: Path, reference: TGatePipeline
) -> None:
    write_emulated(tiny_bundle_copy, batch=(1, 1, 1))
    calls = [{"prompt": "a", "num_inference_steps": 3, "seed": seed} for seed in range(3)]
    with Batcher.from_bundle(tiny_bundle_copy, "tensorrt-rtx", check_hashes=False) as batcher:
        assert batcher.max_batch == 1
        assert_equals_solo(batcher, reference, calls)
