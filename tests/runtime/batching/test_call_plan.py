"""The binding plan of calls, without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgate_export.bundle.integrity import read_manifest
from tgate_export.runtime.batching.plan import plan_calls
from tgate_export.runtime.plan import Slot


@pytest.mark.builds
@pytest.mark.parametrize("fixture", ["tiny_bundle", "reuse_bundle"])
def test_every_tensor_is_bound(fixture: str, request: pytest.FixtureRequest) -> None:
    manifest = read_manifest(request.getfixturevalue(fixture))
    plan = plan_calls(manifest, 3, 16, 16)
    assert {launch.graph for launch in plan.launches} == set(manifest.graphs)
    for launch in plan.launches:
        graph = manifest.graph(launch.graph)
        assert set(launch.inputs) == {tensor.name for tensor in graph.inputs}
        assert set(launch.outputs) == {tensor.name for tensor in graph.outputs}
        assert not set(launch.inputs.values()) & set(launch.outputs.values())


def test_rows_are_images(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    plan = plan_calls(manifest, 3, 16, 16)
    for name, spec in plan.buffers.items():
        assert spec.rows is None, name
        assert spec.shape[0] == 3, name


def test_sampler_follows_each_phase(reuse_bundle: Path) -> None:
    manifest = read_manifest(reuse_bundle)
    plan = plan_calls(manifest, 3, 16, 16)
    assert [step[0].graph for step in plan.steps] == list(manifest.phases)
    assert len(plan.steps) == 4
    for denoiser, sampler in plan.steps:
        assert sampler.inputs["noise_pred"] == denoiser.outputs["noise_pred"]
        assert sampler.outputs["denoiser_input"] == denoiser.inputs["sample"]
        assert sampler.inputs["sample"] == Slot("sample.0") == plan.decode.inputs["latents"]
