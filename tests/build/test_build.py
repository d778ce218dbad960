"""What a build puts in a bundle, read back from the files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from tests.oracle.official_tgate import official_latents
from tests.support.step_plans import tgate_plan
from tgate_export import TGatePipeline
from tgate_export.build.build import build_bundle
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Range
from tgate_export.common.errors import InvalidRequestError
from tgate_export.verify.reference import trajectory_cases

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def initializer_hashes(path: Path) -> set[str]:
    """Content hashes of a graph's weights, also transposed, as exporters may store them."""
    model = onnx.load(path)
    return {
        hashlib.sha256(np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)).tobytes()).hexdigest()
        for tensor in model.graph.initializer
    }  # fmt: skip


def hashes_of(array: np.ndarray) -> set[str]:
    return {
        hashlib.sha256(np.ascontiguousarray(layout).tobytes()).hexdigest()
        for layout in (array, array.T)
    }


def test_gated_has_no_text_and_no_cross_attention(
    tiny_bundle_copy: Path, tiny_pipeline_dir: Path
) -> None:
    # The onnx package reads no files of several names, and other tests link a bundle's.
    graphs = tiny_bundle_copy / "graphs"
    model = onnx.load(graphs / "gated.onnx", load_external_data=False)
    assert [entry.name for entry in model.graph.input] == [
        "sample", "timestep", "guidance_scale", "cache_blend", "guidance_carry", "cross_cache_0",
        "cross_cache_1", "guidance_delta",
    ]  # fmt: skip
    full = initializer_hashes(graphs / "full.onnx")
    gated = initializer_hashes(graphs / "gated.onnx")
    weights = load_file(tiny_pipeline_dir / UNET_WEIGHTS)
    cross = [array for name, array in weights.items() if ".attn2." in name and array.ndim == 2]
    assert len(cross) == 7 * 4  # query, key, value and output of 7 layers
    for array in cross:
        assert hashes_of(array) & full
        assert not hashes_of(array) & gated


def test_denoiser_weights_are_stored_once(tiny_bundle: Path, tiny_pipeline_dir: Path) -> None:
    stored = (tiny_bundle / "graphs" / "denoiser.weights").stat().st_size
    arrays = load_file(tiny_pipeline_dir / UNET_WEIGHTS)
    # A model this small pays for its page alignment: 4 KiB a tensor at most, no second copy.
    assert stored <= sum(array.nbytes + 4096 for array in arrays.values())
    assert stored >= 0.9 * sum(array.nbytes for array in arrays.values() if array.nbytes > 1024)


def test_parameter_counts_are_the_unets(tiny_bundle: Path, tiny_pipeline_dir: Path) -> None:
    graphs = read_manifest(tiny_bundle).graphs
    arrays = load_file(tiny_pipeline_dir / UNET_WEIGHTS)
    whole = sum(array.size for array in arrays.values())
    unused = sum(
        array.size for name, array in arrays.items() if ".attn2." in name or ".norm2." in name
        if "transformer_blocks" in name
    )  # fmt: skip
    # Constants count, too: the 16 frequencies of the time embedding, the 4 scales of a resize.
    assert graphs["full"].parameters - whole == 16 + 4
    assert graphs["gated"].parameters - (whole - unused) == 16 + 4


def test_external_data_is_page_aligned_and_inside(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "graphs" / "full.onnx", load_external_data=False)
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    assert len(entries) > 50
    assert {entry["location"] for entry in entries} == {"denoiser.weights"}
    assert all(int(entry["offset"]) % 4096 == 0 for entry in entries)


def test_attention_and_group_norm_stay_single_nodes(tiny_bundle: Path) -> None:
    model = onnx.load(tiny_bundle / "graphs" / "full.onnx", load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Attention") == 2 * 7  # self- and cross-attention of 7 layers
    assert "GroupNormalization" in kinds
    assert "Softmax" not in kinds


def test_graphs_hold_no_traces_of_the_machine(tiny_bundle: Path) -> None:
    for path in (tiny_bundle / "graphs").glob("*.onnx"):
        content = path.read_bytes()
        for trace in (b"site-packages", b".py", b"/tgate_export/", b"stack_trace"):
            assert trace not in content, (path.name, trace)


def test_dynamic_size_runs_every_size(tiny_pipeline_dir: Path, tiny_dynamic_bundle: Path) -> None:
    """One graph, four sizes, each equal to the official package at that size."""
    pipeline = TGatePipeline.from_bundle(tiny_dynamic_bundle)
    for width, height in ((16, 16), (24, 32), (40, 16), (40, 48)):
        latents = np.random.default_rng(width).standard_normal(
            (1, 4, height // 2, width // 2), dtype=np.float32
        )
        ours = pipeline(
            "a", num_inference_steps=3, gate_step=2, latents=latents, width=width, height=height,
            output_type="latent",
        )  # fmt: skip
        expected = official_latents(
            tiny_pipeline_dir, prompt="a", negative_prompt="", latents=latents, steps=3,
            gate_step=2, guidance_scale=ours.request.guidance_scales[0], scheduler="ddim",
        )  # fmt: skip
        np.testing.assert_allclose(np.asarray(ours.images), expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(InvalidRequestError, match="width 18 is not a multiple of 4: try 16"):
        pipeline("a", width=18)


@pytest.mark.builds
def test_half_precision(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    one = Range(min=1, opt=1, max=1)
    result = build_bundle(
        str(tiny_pipeline_dir), precision="fp16", batch=one, out=tmp_path / "half"
    )
    tensors = {
        tensor.name: tensor.dtype
        for graph in result.manifest.graphs.values()
        for tensor in (*graph.inputs, *graph.outputs)
    }
    assert tensors["cross_cache_0"] == tensors["prompt_embeds"] == "float16"
    assert tensors["sample"] == tensors["noise_pred"] == tensors["images"] == "float32"
    model = onnx.load(result.path / "graphs" / "full.onnx")
    # The frequencies of the time embedding, [1, 16], stay f32.
    weights = [t for t in model.graph.initializer if len(t.dims) > 1 and 1 not in t.dims[:2]]
    kinds = {tensor.data_type for tensor in weights}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert all(difference.holds for difference in result.differences)
    output = TGatePipeline.from_bundle(result.path)("a", num_inference_steps=2, output_type="np")
    assert np.isfinite(np.asarray(output.images)).all()


def test_graphs_that_reuse_self_attention(reuse_bundle: Path, tiny_bundle: Path) -> None:
    manifest, plain = read_manifest(reuse_bundle), read_manifest(tiny_bundle)
    assert manifest.graphs.keys() - plain.graphs.keys() == {"full_reuse", "gated_reuse"}
    assert (manifest.graphs["gated"].inputs, manifest.graphs["full"].inputs) == (
        plain.graphs["gated"].inputs, plain.graphs["full"].inputs,
    )  # fmt: skip
    shapes = {
        tensor.name: tensor.shape
        for name in ("full_reuse", "gated_reuse")
        for tensor in manifest.graphs[name].inputs
    }
    assert shapes["self_passes_0"] == ("batch", 2, 3, 64, 32)
    assert shapes["self_cache_1"] == ("batch", 4, 16, 64)
    # Weights are those of the two other graphs.
    files = {manifest.graphs[name].weights for name in manifest.graphs if "_reuse" in name}
    assert files == {"graphs/denoiser.weights"}
    same = (bundle / "graphs/denoiser.weights" for bundle in (reuse_bundle, tiny_bundle))
    assert len({path.read_bytes() for path in same}) == 1
    model = onnx.load(reuse_bundle / "graphs" / "gated_reuse.onnx", load_external_data=False)
    assert "Attention" not in {node.op_type for node in model.graph.node}


def test_verification_runs_every_graph(reuse_bundle: Path) -> None:
    """A run to compare with PyTorch crosses every graph, for each scheduler."""
    cases = [
        case
        for case in trajectory_cases(read_manifest(reuse_bundle))
        if "sp_interval" in case.settings
    ]
    assert {case.scheduler for case in cases} == {"ddim", "euler", "dpm++2m", "pndm"}
    for case in cases:
        step_plan = tgate_plan(case.steps, **case.settings)
        assert set(step_plan.phases) == {"full", "full_reuse", "gated", "gated_reuse"}
