"""The sampler graph: what it computes, and that engines can compile it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS, advance
from tgate_export.samplers.graph import build_sampler_graph, save_sampler_graph

NAMES = ["next_sample", "denoiser_input", "next_history"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> onnxruntime.InferenceSession:
    path: Path = tmp_path_factory.mktemp("graphs") / "sampler.onnx"
    save_sampler_graph(path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def random_feeds(shape: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(sum(shape))
    return {
        "sample": rng.standard_normal(shape, np.float32),
        "noise_pred": rng.standard_normal(shape, np.float32),
        "history": rng.standard_normal((shape[0], HISTORY, *shape[1:]), np.float32),
        "noise": rng.standard_normal(shape, np.float32),
        "weights": rng.standard_normal((shape[0], NUM_WEIGHTS), np.float32),
    }


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 4, 8, 5), (2, 16, 1, 1)])
def test_every_sample_has_its_own_weights(
    session: onnxruntime.InferenceSession, shape: tuple[int, int, int, int]
) -> None:
    feeds = random_feeds(shape)
    found = session.run(NAMES, feeds)
    for b in range(shape[0]):
        expected = advance(
            feeds["weights"][b],
            feeds["sample"][b],
            feeds["noise_pred"][b],
            feeds["history"][b],
            feeds["noise"][b],
        )
        for name, values, wanted in zip(NAMES, found, expected, strict=True):
            # Sums of six products of numbers of about 1, rounded to 32 bits in another order.
            np.testing.assert_allclose(values[b], wanted, rtol=1e-5, atol=1e-5, err_msg=name)


def test_older_history_is_moved_unchanged(session: onnxruntime.InferenceSession) -> None:
    feeds = random_feeds((2, 4, 8, 8))
    (next_history,) = session.run(["next_history"], feeds)
    np.testing.assert_array_equal(next_history[:, 1:], feeds["history"][:, :-1])


def test_inputs_and_outputs_are_the_contract() -> None:
    graph = build_sampler_graph().graph

    def shapes(values: list[onnx.ValueInfoProto]) -> dict[str, list[str | int]]:
        return {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in values
        }

    latents = ["batch", "channels", "height", "width"]
    history = ["batch", 3, "channels", "height", "width"]
    assert shapes(list(graph.input)) == {
        "sample": latents,
        "noise_pred": latents,
        "history": history,
        "noise": latents,
        "weights": ["batch", 9],
    }
    assert shapes(list(graph.output)) == {
        "next_sample": latents,
        "denoiser_input": latents,
        "next_history": history,
    }


def test_only_exact_arithmetic_with_static_structure() -> None:
    """No MatMul, which GPUs run in TF32, and nothing whose shape or flow depends on data."""
    kinds = {node.op_type for node in build_sampler_graph().graph.node}
    arithmetic = {"Mul", "Add", "Sum", "ReduceSum"}
    movement = {"Reshape", "Split", "Slice", "Concat", "Unsqueeze"}
    assert kinds <= arithmetic | movement
