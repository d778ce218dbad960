"""What is computed in fp32 inside an fp16 bundle, and fp32 references from fp16 weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn import functional

from tests.support import tiny
from tgate_export.build.options import check_options
from tgate_export.bundle.manifest import Range
from tgate_export.common.errors import VerificationError
from tgate_export.export.onnx_export import export_graph
from tgate_export.families.graphs import denoiser_phases, graph_exports
from tgate_export.families.loading import (
    component_precision,
    computing_in_fp32,
    float32_layers,
    load,
)
from tgate_export.families.source import ModelSource, resolve_source
from tgate_export.methods import tgate
from tgate_export.methods.upcast import AttentionInFloat32
from tgate_export.verify.differences import compare, require

FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSource]:
    folder = tmp_path_factory.mktemp("precision")
    found = {}
    for name in ("sd21", "sdxl", "pixart-alpha"):
        tiny.save(name, folder / name)
        found[name] = resolve_source(str(folder / name))
    return found


def half_graph(source: ModelSource, name: str, folder: Path) -> onnx.ModelProto:
    """Export one graph of an fp16 bundle, with the types of every value."""
    import onnx_ir

    options = check_options(source, "fp16", tiny.SIZE, Range(min=2, opt=2, max=2))
    parts = load(source, "fp16")
    phases = denoiser_phases(source, parts, options.size, options.method, options.phases)
    (graph,) = (
        entry for entry in graph_exports(source, parts, options.size, phases) if entry.name == name
    )
    onnx_ir.save(export_graph(graph, options.batch, options.size, 2), folder / "graph.onnx")
    return onnx.shape_inference.infer_shapes(onnx.load(folder / "graph.onnx"))


def types(model: onnx.ModelProto, kind: str, index: int) -> Counter[int]:
    """Element types of the `index`-th input of every node of a kind."""
    known = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    known |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return Counter(known[node.input[index]] for node in model.graph.node if node.op_type == kind)


@pytest.mark.builds
def test_attention_of_sd21_is_computed_in_fp32(
    sources: dict[str, ModelSource], tmp_path: Path
) -> None:
    model = half_graph(sources["sd21"], "gated", tmp_path)
    assert types(model, "Attention", 0) == {FLOAT: 4}
    assert types(model, "Conv", 1).keys() == {FLOAT16}


@pytest.mark.builds
def test_t5_ends_its_feed_forward_in_fp32(sources: dict[str, ModelSource], tmp_path: Path) -> None:
    model = half_graph(sources["pixart-alpha"], "text_encoder", tmp_path)
    kinds = Counter(
        tensor.data_type for tensor in model.graph.initializer if list(tensor.dims) == [64, 32]
    )  # feed-forward outputs, transposed
    assert kinds == {FLOAT: 2}
    assert model.graph.output[0].type.tensor_type.elem_type == FLOAT16
    assert float32_layers(load(sources["pixart-alpha"], "fp16")["text_encoder"]) == 2
    assert float32_layers(load(sources["sd21"], "fp16")["text_encoder"]) == 0


@pytest.mark.builds
def test_t5_in_fp16_runs(sources: dict[str, ModelSource], tmp_path: Path) -> None:
    """Its sums are fp32 and its norms' scales fp16, which ONNX Runtime takes only when aligned."""
    half_graph(sources["pixart-alpha"], "text_encoder", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    inputs = {entry.name: np.ones(entry.shape, np.int64) for entry in session.get_inputs()}
    found = session.run(["prompt_embeds"], inputs)[0]
    assert found.dtype == np.float16
    assert np.isfinite(found).all()
    ids, mask = (torch.from_numpy(value) for value in inputs.values())
    encoder = load(sources["pixart-alpha"], "fp32")["text_encoder"]
    expected = encoder(ids, attention_mask=mask)[0].numpy()
    # 11 bits a value over two layers.
    np.testing.assert_allclose(found, expected, atol=1e-2 * np.abs(expected).max())


def test_vae_of_sdxl_stays_in_fp32(sources: dict[str, ModelSource]) -> None:
    parts = load(sources["sdxl"], "fp16")
    dtypes = {name: next(part.parameters()).dtype for name, part in parts.modules.items()}
    assert dtypes.pop("vae") == torch.float32
    assert set(dtypes.values()) == {torch.float16}
    assert component_precision(sources["sdxl"], "vae", "fp16") == "fp32"
    assert component_precision(sources["sd21"], "vae", "fp16") == "fp16"


def test_upcast_attention_does_not_overflow() -> None:
    query, key, value = torch.full((3, 1, 1, 4, 8), 300.0, dtype=torch.float16)
    assert not torch.isfinite(query @ key.transpose(-1, -2)).any()  # the logits, in fp16
    with AttentionInFloat32():
        found = functional.scaled_dot_product_attention(query, key, value)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, value)


@pytest.mark.parametrize("name", ["sdxl", "pixart-alpha"])
@torch.no_grad()
def test_fp32_from_fp16_weights(sources: dict[str, ModelSource], name: str) -> None:
    """Layer by layer equals converting the whole model, and leaves the weights as they were."""
    source = sources[name]
    half, whole = load(source, "fp16"), load(source, "fp16")
    stored = {key: value.clone() for key, value in half["text_encoder"].state_dict().items()}
    inputs: list[Any] = []
    for spec in source.family.tokenizers(source):
        ids = torch.randint(0, 100, (2, spec.max_length), generator=torch.manual_seed(0))
        inputs += [ids, *([torch.ones_like(ids)] if spec.mask else [])]
    if source.family.clip_skips(source):
        inputs.append(torch.tensor([0, 1]))
    for part in whole.modules.values():
        part.float()
    expected = source.family.prompt_encoder(source, whole, tiny.SIZE)(*inputs)[0]
    encoder = source.family.prompt_encoder(source, half, tiny.SIZE)
    with computing_in_fp32(encoder):
        found = encoder(*inputs)[0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for key, value in half["text_encoder"].state_dict().items():
        assert value.dtype == stored[key].dtype
        assert torch.equal(value, stored[key])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    expected = np.ones((2, 3), np.float32)
    found = expected.copy()
    found[1, 2] = value
    with pytest.raises(VerificationError, match=r"full: noise_pred .* not finite.*fp32"):
        require([compare("full", "noise_pred", found, expected, 1.0)])


@torch.no_grad()
def test_embedded_guidance_in_fp32_from_fp16_weights(tmp_path: Path) -> None:
    """The embedding has the type that is computed in, whatever the weights are stored in."""
    tiny.save("lcm", tmp_path / "lcm")
    source = resolve_source(str(tmp_path / "lcm"))
    half, whole = load(source, "fp16"), load(source, "fp16")
    whole["unet"].float()
    size = check_options(source, "fp16", tiny.SIZE, tiny.FIXED).size
    phases = denoiser_phases(source, half, size, tgate.METHOD, ("full", "gated"))
    random = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=random)
    (prompt,) = source.conditioning().prompt
    inputs = (
        sample,
        torch.tensor([900.0, 100.0]),
        torch.randn(2, *(int(dim) for dim in prompt.shape), generator=random),
        torch.tensor([2.0, 8.5]),
    )
    stored, converted = (phases.module(parts["unet"], "full") for parts in (half, whole))
    expected = converted(*inputs)[0]
    with computing_in_fp32(stored):
        found = stored(*inputs)[0]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    another = converted(*inputs[:3], torch.tensor([2.0, 3.0]))[0]
    assert not torch.allclose(another[1], expected[1])  # the scale has an effect
