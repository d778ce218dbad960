"""OpenVINO in bf16: what it may not round, and how far from fp32 it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from tgate_export import TGatePipeline
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.runtime.backends import openvino_compiled, openvino_model, select
from tgate_export.verify.differences import Computed, graph_bound
from tgate_export.verify.reference import TrajectoryCase
from tgate_export.verify.run_graph import Arrays, run_file, run_on
from tgate_export.verify.trajectories import trajectory_bound

openvino = pytest.importorskip("openvino")


@pytest.fixture
def bf16() -> None:
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16 arithmetic")


def full_inputs(bundle: Bundle) -> Arrays:
    """Late timesteps, whose products with frequencies bf16 cannot hold; prompts of the world."""
    random = np.random.default_rng(0)
    file = bundle.file("graphs/text_encoder.onnx")
    prompts = [
        run_file(
            file, {"input_ids": random.integers(0, 40, (2, 16)), "clip_skip": np.zeros(2, int)}
        )
        for _ in range(2)
    ]
    return {
        "sample": random.standard_normal((2, 8, 8, 8), dtype=np.float32),
        "timestep": np.array([997, 961], np.float32),
        "prompt_embeds": prompts[0]["prompt_embeds"],
        "negative_prompt_embeds": prompts[1]["prompt_embeds"],
        "guidance_scale": np.full(2, 5, np.float32),
        "guidance_rescale": np.zeros(2, np.float32),
        "cache_blend": np.full(2, 0.5, np.float32),
    }


@pytest.mark.usefixtures("bf16")
@pytest.mark.parametrize("joined", [False, True])
def test_graphs_are_within_bounds_at_late_timesteps(
    shapes_bundle: Path, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime in fp32 is the reference."""
    if joined:  # with itself: one graph with another's weights is enough
        monkeypatch.setattr(openvino_compiled, "SMALL_GRAPH_BYTES", 0)
    bundle = open_bundle(shapes_bundle)
    inputs = full_inputs(bundle)
    expected = run_file(bundle.file("graphs/full.onnx"), inputs)
    found = run_on(select("openvino:bf16", bundle), bundle.manifest, "full", inputs)
    for name, values in expected.items():
        # Of two predictions that are nearly alike, the difference has the errors of both.
        scale = expected["noise_pred" if name == "guidance_delta" else name]
        difference = np.abs(found[name] - values).max() / np.abs(scale).max()
        assert 1e-4 < difference <= graph_bound(name, "bf16"), name


@pytest.mark.parametrize(
    ("computed", "scheduler", "gate", "bound"),
    [("bf16", "pndm", 25, 1.0), ("bf16", "pndm", 10, 0.2), ("bf16", "ddim", 25, 0.2),
     ("fp32", "pndm", 25, 1e-3)],
)  # fmt: skip
def test_bounds_of_runs(computed: Computed, scheduler: str, gate: int, bound: float) -> None:
    assert trajectory_bound(TrajectoryCase(scheduler, 25, {"gate_step": gate}), computed) == bound


def test_sinusoids_are_outputs(shapes_bundle: Path) -> None:
    """The plugin lowers nothing between the last heavy layer and an output."""
    path = open_bundle(shapes_bundle).file("graphs/full.onnx")
    model = openvino.Core().read_model(path)
    before = len(model.outputs)
    openvino_model.keep_sinusoids(model)
    added = Counter(
        result.input_value(0).get_node().get_type_name() for result in model.get_results()[before:]
    )
    nodes = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    assert added == {"Sin": nodes["Sin"], "Cos": nodes["Cos"]}
    assert added["Sin"] > 0


def test_graphs_of_one_model_with_sinusoids(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined graphs have outputs that nobody binds; compiled for fp32, which every CPU has."""
    bundle = open_bundle(tiny_bundle)
    images = []
    for limit in (openvino_compiled.SMALL_GRAPH_BYTES, 0):
        monkeypatch.setattr(openvino_compiled, "SMALL_GRAPH_BYTES", limit)
        backend = select("openvino", bundle)
        backend.precision = "bf16" if limit == 0 else None
        call = {"num_inference_steps": 4, "gate_step": 2, "seed": 0, "output_type": "latent"}
        images.append(np.asarray(TGatePipeline(bundle, backend)("a", **call).images))
    np.testing.assert_allclose(*images, atol=1e-4)
