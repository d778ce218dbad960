"""Which backend runs a bundle, and what is said when none or another does."""

from __future__ import annotations

import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.support.emulation.install import Emulation, install
from tests.support.emulation.plans import write_emulated
from tests.support.hostile import relist
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import Bundle, open_bundle, read_manifest
from tgate_export.bundle.manifest import MANIFEST_NAME
from tgate_export.bundle.plans import Library
from tgate_export.cli._hints import on_command_line
from tgate_export.common.errors import BundleError, InvalidRequestError
from tgate_export.runtime.backends import onnxruntime as onnxruntime_module
from tgate_export.runtime.backends import (
    onnxruntime_sessions,
    openvino_compiled,
    openvino_model,
    select,
)
from tgate_export.runtime.backends.base import BackendError, BackendOptions
from tgate_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
from tgate_export.runtime.backends.openvino import OpenVinoBackend
from tgate_export.runtime.pipeline import TGatePipeline


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Emulation:
    return install(monkeypatch)


@pytest.fixture
def without_cuda_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def unimported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, name, None)


def planned(path: Path, *libraries: Library, **options: Any) -> Bundle:
    for library in libraries:
        write_emulated(path, library, name=library, **options)
    return open_bundle(path)


def test_auto_takes_plans_first(gpu: Emulation, tiny_bundle_copy: Path) -> None:
    bundle = planned(tiny_bundle_copy, "tensorrt-rtx")
    backend = select("auto", bundle)
    assert (backend.name, backend.reason) == ("tensorrt-rtx", "the fastest that works here")
    assert select("auto", planned(tiny_bundle_copy, "tensorrt")).name == "tensorrt"


def test_auto_passes_over_plans_that_do_not_run_here(
    gpu: Emulation,
    tiny_bundle_copy: Path,
    without_cuda_provider: None,
    without_openvino: None,
) -> None:
    write_emulated(tiny_bundle_copy, "tensorrt", name="other", compute_capabilities=["9.0"])
    backend = select("auto", planned(tiny_bundle_copy, "tensorrt-rtx"))
    assert backend.name == "tensorrt-rtx"
    assert backend.reason == (
        "the fastest that works here (tensorrt: no tensorrt plans for tensorrt 10.13.3.9 on "
        "compute capability 8.9 fit (other: compute capability 9.0))"
    )
    gpu.cuda.driver = 0
    backend = select("auto", open_bundle(tiny_bundle_copy))
    assert backend.name == "onnxruntime:cpu"
    assert "tensorrt-rtx: no CUDA driver on this machine; onnxruntime:cuda: this" in backend.reason


def test_auto_probes_nothing_that_the_bundle_cannot_use(
    tiny_bundle: Path, unimported: None, without_cuda_provider: None, without_openvino: None
) -> None:
    backend = select("auto", open_bundle(tiny_bundle))
    assert backend.name == "onnxruntime:cpu"
    assert "tensorrt" not in backend.reason


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_a_bundle_without_plans(tiny_bundle: Path, unimported: None, library: Library) -> None:
    with pytest.raises(BackendError) as caught:
        select(library, open_bundle(tiny_bundle))
    said = caught.value.worded(on_command_line)
    assert f"has no {library} plans: make them with `tgate-export build --model" in said
    assert f"--target {library}`, or use --backend auto" in said


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt-rtx"])
def test_a_module_that_is_not_installed(
    tiny_bundle_copy: Path, unimported: None, library: Library
) -> None:
    with pytest.raises(BackendError, match=rf"pip install '{library}>="):
        select(library, planned(tiny_bundle_copy, library))


def test_plans_for_another_machine(gpu: Emulation, tiny_bundle_copy: Path) -> None:
    write_emulated(tiny_bundle_copy, name="old", version="1.6.0.1")
    write_emulated(tiny_bundle_copy, name="blackwell", compute_capabilities=["12.0"])
    with pytest.raises(BackendError) as caught:
        select("tensorrt-rtx", open_bundle(tiny_bundle_copy))
    message = caught.value.worded(on_command_line)
    assert "blackwell: compute capability 12.0; old: version 1.6.0.1" in message
    assert "--target tensorrt-rtx --sm 8.9`" in message


def test_plans_for_another_shape(gpu: Emulation, tiny_bundle_copy: Path) -> None:
    bundle = planned(tiny_bundle_copy, "tensorrt-rtx", batch=(2, 2, 2))
    pipeline = TGatePipeline(bundle, select("tensorrt-rtx", bundle))
    with pytest.raises(BackendError) as caught:
        pipeline("a", num_inference_steps=2)
    said = caught.value.worded(on_command_line)
    assert "(tensorrt-rtx: text_encoder's input_ids 2x77, not 1x77)" in said
    assert "--size 16x16 --batch 1:1:8 " in said
    assert "--target tensorrt-rtx --sm 8.9`" in said
    one_to_eight = "batch=Range(min=1, opt=1, max=8)"
    target = f"library='tensorrt-rtx', compute_capabilities=('8.9',), {one_to_eight}"
    assert f", {one_to_eight}, " in str(caught.value)
    ending = f", plans=[PlanRequest({target})])`, or use backend='onnxruntime'"
    assert str(caught.value).endswith(ending)


def test_options_are_for_plans(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(ValueError, match=r"cuda_graphs=False is for .* and onnxruntime:cuda"):
        select("onnxruntime:cpu", bundle, BackendOptions(cuda_graphs=False))
    with pytest.raises(ValueError, match="budget is for auto, tensorrt and tensorrt-rtx"):
        select("onnxruntime:cuda", bundle, BackendOptions(weight_streaming_budget=1))


def test_onnxruntime_for_cuda_without_a_gpu(
    tiny_bundle: Path, without_openvino: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without its GPU: `auto` goes on to the CPU."""
    import onnxruntime

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime_module, "has_driver", lambda: False)
    bundle = open_bundle(tiny_bundle)
    with pytest.raises(BackendError, match=r"no CUDA driver or GPU .*use backend='onnxr"):
        select("onnxruntime:cuda", bundle)
    assert select("onnxruntime", bundle).name == "onnxruntime:cpu"
    backend = select("auto", bundle)
    assert backend.name == "onnxruntime:cpu"
    assert "cuda" not in backend.reason.lower()


def test_onnxruntimes_own_tensorrt_rtx(tiny_bundle: Path, without_cuda_provider: None) -> None:
    with pytest.raises(BackendError, match="no NvTensorRTRTXExecutionProvider"):
        select("onnxruntime:tensorrt-rtx", open_bundle(tiny_bundle))


def test_auto_prefers_openvino_on_a_cpu(tiny_bundle: Path, without_cuda_provider: None) -> None:
    pytest.importorskip("openvino")
    backend = select("auto", open_bundle(tiny_bundle))
    assert backend.name == "openvino"
    assert backend.reason == "the fastest that works here"


def test_without_openvino(
    tiny_bundle: Path, without_cuda_provider: None, without_openvino: None
) -> None:
    bundle = open_bundle(tiny_bundle)
    backend = select("auto", bundle)
    assert backend.name == "onnxruntime:cpu"
    assert "openvino: openvino is not installed" in backend.reason
    with pytest.raises(BackendError, match=r"is not installed: pip install 'openvino>="):
        select("openvino", bundle)
    # A precision is openvino's alone: nothing else takes its place.
    with pytest.raises(BackendError, match="openvino is not installed"):
        select("auto", bundle, BackendOptions(precision="fp32"))


@pytest.fixture
def bf16_capable(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> bool:
    """Whether the CPU says that it computes in bf16; patched, since few test machines do."""
    openvino = pytest.importorskip("openvino")
    capabilities = ["FP32", *(["BF16"] if request.param else [])]
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: capabilities)
    return bool(request.param)


@pytest.mark.parametrize("bf16_capable", [False], indirect=True)
@pytest.mark.parametrize("name", ["openvino", "auto", "openvino:bf16"])
def test_bf16_where_there_is_none(tiny_bundle: Path, name: str, bf16_capable: bool) -> None:
    options = BackendOptions() if name == "openvino:bf16" else BackendOptions(precision="bf16")
    with pytest.raises(BackendError, match=r"no bf16 arithmetic.*: use precision='fp32'"):
        select(name, open_bundle(tiny_bundle), options)


@pytest.mark.parametrize("bf16_capable", [True], indirect=True)
def test_precision_is_asked_for(tiny_bundle: Path, bf16_capable: bool) -> None:
    bundle = open_bundle(tiny_bundle)
    assert select("openvino", bundle).name == "openvino"
    assert select("auto", bundle, BackendOptions(precision="fp32")).name == "openvino"
    backend = select("auto", bundle, BackendOptions(precision="bf16"))
    # What a report names is what `select` takes.
    assert backend.name == select(backend.name, bundle).name == "openvino:bf16"


@pytest.mark.parametrize("name", ["onnxruntime:cpu", "tensorrt", "openvino:bf16"])
def test_precision_is_not_for_others(tiny_bundle: Path, name: str) -> None:
    with pytest.raises(
        InvalidRequestError,
        match=f"^{name} does not take .*: precision='fp32' is for auto and openvino$",
    ):
        select(name, open_bundle(tiny_bundle), BackendOptions(precision="fp32"))


def test_unknown_precision() -> None:
    with pytest.raises(InvalidRequestError, match="unknown precision 'int8': choose one of fp32"):
        BackendOptions(precision="int8")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["onnxruntime:cpu", "openvino"])
def test_a_graph_that_cannot_be_loaded(tiny_bundle_copy: Path, name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    path = tiny_bundle_copy / "graphs" / "gated.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.write_bytes(model.SerializeToString())
    relist(tiny_bundle_copy)
    bundle = Bundle(tiny_bundle_copy, read_manifest(tiny_bundle_copy))
    pipeline = TGatePipeline(bundle, select(name, bundle))
    with pytest.raises(BackendError, match=r"cannot load graph 'gated': .") as caught:
        pipeline("a", num_inference_steps=2, gate_step=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["onnxruntime:cpu", "openvino"])
def test_weights_that_are_gone(tiny_bundle_copy: Path, name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, name)
    (tiny_bundle_copy / "graphs" / "denoiser.weights").unlink()
    with pytest.raises(BundleError, match=r"denoiser\.weights is gone .*: load the bundle again"):
        pipeline("a", num_inference_steps=2, gate_step=1)


def test_large_denoisers_compute_from_one_map(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = {"num_inference_steps": 4, "gate_step": 2, "seed": 3, "output_type": "latent"}
    found = {}
    for limit in (onnxruntime_sessions.SMALL_GRAPH_BYTES, 0):
        monkeypatch.setattr(onnxruntime_sessions, "SMALL_GRAPH_BYTES", limit)
        pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
        found[limit] = pipeline("a fox", **call).images
        backend = pipeline.backend
        assert isinstance(backend, OnnxRuntimeBackend)
        mapped = [file.name for file in backend._sessions._weights]
        assert mapped == ([] if limit else ["denoiser.weights"])
    packed, shared = found.values()
    # Other kernels: fp32 rounding, which four steps carry on.
    assert np.abs(packed - shared).max() <= 1e-5 * np.abs(packed).max()


def test_openvino_maps_every_file_once(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    mapped = []

    class Slow(openvino_model.WeightMap):
        def __init__(self, file: Path) -> None:
            mapped.append(file.name)
            time.sleep(0.2)  # another thread that looked for it would map it again
            super().__init__(file)

    monkeypatch.setattr(openvino_compiled, "WeightMap", Slow)
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "openvino")
    for gate in (4, 2):
        pipeline("a fox", num_inference_steps=4, gate_step=gate)
    files = {graph.weights for graph in pipeline.manifest.graphs.values()} - {None}
    assert sorted(mapped) == sorted(str(file).rpartition("/")[2] for file in files)


@pytest.mark.parametrize("bodies", ["that OpenVINO can compile", "that it cannot"])
def test_openvino_packs_the_weights_of_large_denoisers_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, bodies: str
) -> None:
    pytest.importorskip("openvino")
    call = {"num_inference_steps": 4, "seed": 3, "output_type": "latent"}
    found: dict[int, list[np.ndarray]] = {}
    for limit in (openvino_compiled.SMALL_GRAPH_BYTES, 0):
        monkeypatch.setattr(openvino_compiled, "SMALL_GRAPH_BYTES", limit)
        if bodies == "that it cannot":
            monkeypatch.setattr(openvino_model, "_decompose_group_norms", lambda *_: None)
        pipeline = TGatePipeline.from_bundle(tiny_bundle, "openvino")
        backend = pipeline.backend
        assert isinstance(backend, OpenVinoBackend)
        # Ungated needs one graph, gated another; the third has another batch.
        runs = [("a fox", 4), ("a fox", 2), (["a fox", "an owl"], 2), ("a fox", 2)]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found[limit] = [
                pipeline(prompt, gate_step=gate, **call).images for prompt, gate in runs
            ]
        said = [str(entry.message) for entry in caught]
        if limit or bodies != "that it cannot":
            assert not said
        else:
            assert re.search(r"full and gated apart.*Unsupported operation.*GroupNorm", *said)
        joined = {"full", "gated"} in [
            set(entry.shapes) for entry in backend._graphs._compiled.values()
        ]
        assert joined == (limit == 0 and bodies != "that it cannot")
    for apart, together in zip(*found.values(), strict=True):
        # Its own way of group norms, in other kernels: fp32 rounding, which four steps carry on.
        assert np.abs(apart - together).max() <= 1e-5 * np.abs(apart).max()


def other_sampler(path: Path, kind: str) -> None:
    """Replace a bundle's sampler graph by one that its manifest does not describe."""
    graph = path / "graphs" / "sampler.onnx"
    model = onnx.load(graph)
    values = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    nodes = [
        onnx.helper.make_node("Identity", ["sample"], ["denoiser_input"]),
        onnx.helper.make_node("Identity", ["history"], ["next_history"]),
    ]
    double = onnx.TensorProto.DOUBLE
    if kind == "output of another type":
        values["next_sample"].type.tensor_type.elem_type = double
        nodes.append(onnx.helper.make_node("Cast", ["sample"], ["next_sample"], to=double))
    elif kind == "input of another type":
        values["noise_pred"].type.tensor_type.elem_type = double
        nodes.append(onnx.helper.make_node("Identity", ["sample"], ["next_sample"]))
    else:  # 64 times as large as it says
        concat = onnx.helper.make_node("Concat", ["sample"] * 64, ["next_sample"], axis=0)
        nodes.append(concat)
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    graph.write_bytes(model.SerializeToString())
    manifest = read_manifest(path)
    files = {**manifest.files, "graphs/sampler.onnx": hash_file(graph)}
    (path / MANIFEST_NAME).write_text(manifest.model_copy(update={"files": files}).to_json())


@pytest.mark.parametrize(
    "kind", ["output of another type", "input of another type", "larger output"]
)
def test_graph_that_is_not_what_the_manifest_says(
    cpu_backend: str, tiny_bundle_copy: Path, kind: str
) -> None:
    other_sampler(tiny_bundle_copy, kind)
    pipeline = TGatePipeline.from_bundle(tiny_bundle_copy, cpu_backend)
    # What it declares is compared before an engine sees it, what it does when it runs.
    refusal = (BackendError, r"graph 'sampler'")
    if kind != "larger output":
        refusal = (BundleError, r"sampler\.onnx: its (in|out)put '\w+' is not as the manifest says")
    with pytest.raises(refusal[0], match=refusal[1]) as caught:
        pipeline("a cat", num_inference_steps=2, gate_step=1, seed=0, output_type="latent")
    assert "\n" not in str(caught.value)
