"""The binding plan, without a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.step_plans import tgate_plan
from tgate_export.bundle.integrity import read_manifest
from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import BundleError
from tgate_export.runtime.plan import BindingPlan, Launch, RunShape, Slot, plan_run


@pytest.fixture
def manifest(tiny_bundle: Path) -> Manifest:
    return read_manifest(tiny_bundle)


@pytest.fixture
def reusing(reuse_bundle: Path) -> Manifest:
    return read_manifest(reuse_bundle)


def plan(manifest: Manifest, steps: int = 6, gate: int = 2, **intervals: int) -> BindingPlan:
    return plan_run(manifest, RunShape(2, 16, 16, tgate_plan(steps, gate, **intervals)))


def launches(found: BindingPlan) -> list[Launch]:
    return [*found.encode, *(launch for step in found.steps for launch in step), found.decode]


def test_order_of_graphs(manifest: Manifest) -> None:
    assert [launch.graph for launch in launches(plan(manifest, 3, 1))] == [
        "text_encoder", "text_encoder", "full", "sampler", "gated", "sampler", "gated", "sampler",
        "vae_decoder",
    ]  # fmt: skip


def test_every_tensor_is_bound(manifest: Manifest) -> None:
    for launch in launches(plan(manifest)):
        graph = manifest.graph(launch.graph)
        assert set(launch.inputs) == {tensor.name for tensor in graph.inputs}
        assert set(launch.outputs) == {tensor.name for tensor in graph.outputs}


def test_gated_reads_the_memory_that_full_wrote(manifest: Manifest) -> None:
    found = plan(manifest)
    full = next(step[0] for step in found.steps if step[0].graph == "full")
    gated = next(step[0] for step in found.steps if step[0].graph == "gated")
    assert manifest.caches
    for name in manifest.caches:
        assert full.outputs[name] == gated.inputs[name]


def test_no_launch_reads_what_it_writes(manifest: Manifest) -> None:
    for launch in launches(plan(manifest)):
        assert not set(launch.inputs.values()) & set(launch.outputs.values()), launch


def test_everything_read_was_written_by_the_host_or_before(manifest: Manifest) -> None:
    """Replays the data flow: the host writes its inputs, launches write theirs in order."""
    replay(plan(manifest, steps=5, gate=3))


def test_reused_self_attention_was_written_before(reusing: Manifest) -> None:
    found = plan(reusing, steps=12, gate=7, sp_interval=3, fi_interval=2, warm_up=1)
    assert {denoiser.graph for denoiser, _ in found.steps} == {
        "full", "full_reuse", "gated", "gated_reuse",
    }  # fmt: skip
    replay(found)
    for launch in launches(found):
        assert not set(launch.inputs.values()) & set(launch.outputs.values()), launch


def replay(found: BindingPlan) -> None:
    evaluations = len(found.steps)
    written = {Slot(name) for name in ("tokens/input_ids", "negative_tokens/input_ids",
                                       "parameter/guidance_scale",
                                       "parameter/guidance_rescale", "parameter/clip_skip",
                                       "parameter/cache_blend", "parameter/guidance_carry",
                                       "negative_parameter/clip_skip",
                                       "sample.0", "denoiser_input", "history.0")}  # fmt: skip
    written.add(Slot("noise"))
    written |= {Slot(name, row) for name in ("timestep", "weights") for row in range(evaluations)}
    for launch in launches(found):
        assert set(launch.inputs.values()) <= written, launch.graph
        written |= set(launch.outputs.values())
    last = found.steps[-1][1]
    assert found.latents == last.outputs["next_sample"]
    assert found.decode.inputs["latents"] == found.latents


def test_steps_read_their_own_rows(manifest: Manifest) -> None:
    for index, (denoiser, sampler) in enumerate(plan(manifest).steps):
        assert denoiser.inputs["timestep"] == Slot("timestep", index)
        assert sampler.inputs["weights"] == Slot("weights", index)
        assert sampler.inputs["noise"] == Slot("noise")


def test_only_a_sampler_that_draws_noise_has_some_for_every_step(manifest: Manifest) -> None:
    shape = RunShape(2, 16, 16, tgate_plan(6, 2), noise=True)
    found = plan_run(manifest, shape)
    assert found.buffers["noise"].slots == 6
    for index, (_, sampler) in enumerate(found.steps):
        assert sampler.inputs["noise"] == Slot("noise", index)
    assert plan(manifest).buffers["noise"].slots == 1


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
