"""The binding plan, without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.step_plans import tgate_plan
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import BundleError
from tgate_export.runtime.plan import BatchPlan, BatchShape, Launch, plan_batch

# What the host writes before the first step.
WRITTEN = {
    "tokens/input_ids", "parameter/guidance_scale", "parameter/guidance_rescale",
    "parameter/clip_skip", "parameter/cache_blend", "parameter/guidance_carry",
    "negative_prompt_embeds", "sample.0", "denoiser_input", "history.0",
    "timestep", "weights", "noise",
}  # fmt: skip


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


@pytest.fixture
def reusing(reuse_bundle: Path) -> Manifest:
    return read_manifest(reuse_bundle)


def plan(manifest: Manifest, batch: int = 2) -> BatchPlan:
    return plan_batch(manifest, BatchShape(batch, 16, 16, manifest.phases))


@pytest.mark.builds
@pytest.mark.parametrize("fixture", ["tiny_bundle", "reuse_bundle"])
def test_every_tensor_is_bound(fixture: str, request: pytest.FixtureRequest) -> None:
    manifest = read_manifest(request.getfixturevalue(fixture))
    found = plan(manifest).bindings
    assert {launch.graph for launch in found.launches} == set(manifest.graphs)
    for launch in found.launches:
        graph = manifest.graph(launch.graph)
        assert set(launch.inputs) == {tensor.name for tensor in graph.inputs}
        assert set(launch.outputs) == {tensor.name for tensor in graph.outputs}
        assert not set(launch.inputs.values()) & set(launch.outputs.values()), launch


def test_only_what_a_run_needs_is_bound(manifest: Manifest) -> None:
    found = plan_batch(manifest, BatchShape(2, 16, 16, ("full",))).bindings
    assert {launch.graph for launch in found.launches} == {
        "text_encoder", "full", "sampler", "vae_decoder",
    }  # fmt: skip


def test_rows_are_images(manifest: Manifest) -> None:
    for name, spec in plan(manifest, batch=3).buffers.items():
        assert spec.shape[0] == 3, name


def test_gated_reads_the_memory_that_full_wrote(manifest: Manifest) -> None:
    denoise = plan(manifest).denoise
    assert manifest.caches
    for name in manifest.caches:
        assert denoise["full"].outputs[name] == denoise["gated"].inputs[name]


def test_everything_read_was_written_by_the_host_or_before(manifest: Manifest) -> None:
    """Replays the data flow: the host writes its inputs, launches write theirs in order."""
    replay(plan(manifest), tgate_plan(5, 3).phases)


def test_reused_self_attention_was_written_before(reusing: Manifest) -> None:
    phases = tgate_plan(12, 7, sp_interval=3, fi_interval=2, warm_up=1).phases
    assert set(phases) == {"full", "full_reuse", "gated", "gated_reuse"}
    replay(plan(reusing), phases)


def replay(found: BatchPlan, phases: tuple[str, ...]) -> None:
    written = set(WRITTEN)

    def run(launch: Launch) -> None:
        assert set(launch.inputs.values()) <= written, launch.graph
        written.update(launch.outputs.values())

    run(found.encode)
    for step, phase in enumerate(phases):
        denoiser, sampler = found.denoise[phase], found.sample[step % 2]
        run(denoiser)
        run(sampler)
        assert sampler.inputs["noise_pred"] == denoiser.outputs["noise_pred"]
        assert sampler.outputs["denoiser_input"] == denoiser.inputs["sample"]
        # What the sampler wrote is what it reads the next time.
        following = found.sample[(step + 1) % 2]
        for name in ("sample", "history"):
            assert sampler.outputs[f"next_{name}"] == following.inputs[name]
            written.discard(sampler.inputs[name])


def test_a_tensor_that_fits_no_buffer_is_named(manifest: Manifest) -> None:
    gated = manifest.graphs["gated"]
    wrong = gated.model_copy(
        update={
            "inputs": tuple(
                tensor.model_copy(update={"dtype": "float16"})
                if tensor.name == "cross_cache_1"
                else tensor
                for tensor in gated.inputs
            )
        }
    )
    broken = manifest.model_copy(update={"graphs": {**manifest.graphs, "gated": wrong}})
    with pytest.raises(BundleError, match=r"'gated'.*'cross_cache_1' is float16.*float32"):
        plan(broken)
