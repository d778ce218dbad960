"""Real TensorRT-RTX builds, for GPUs that are not here."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tests.compile.conftest import request_for
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import Range
from tgate_export.bundle.plans import PlanSettings, keep_plans, plan_sets
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.progress import Progress
from tgate_export.compile.compile import PlanResult, compile_plans, plan_key, prepare
from tgate_export.compile.request import PlanRequest

GRAPHS = ("text_encoder", "full", "gated", "vae_decoder", "sampler")


def compile_for(bundle: Bundle, request: PlanRequest, **options: bool) -> PlanResult:
    ready = prepare(request, bundle.manifest.batch)
    return compile_plans(bundle, ready, Progress(), **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_graph_has_a_plan_and_nothing_is_left_behind(tiny_plans: Path) -> None:
    (plans,) = plan_sets(tiny_plans)
    assert tuple(plans.plans) == GRAPHS
    assert plans.name.startswith("tensorrt-rtx-1.")
    assert plans.name.endswith("-sm89-fp32-b1-16x16")
    assert {path.name for path in plans.path.iterdir()} == {
        "plans.json",
        *(f"{graph}.plan" for graph in GRAPHS),
    }
    assert [path.name for path in (tiny_plans / "plans").iterdir()] == [plans.name]
    assert all(plan.content.bytes > 1000 for plan in plans.plans.values())


def test_the_demo_pipeline_compiles_for_two_gpus(shapes_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(shapes_bundle, tmp_path / "bundle"))
    result = compile_for(bundle, request_for("8.9", "12.0"))
    (plans,) = plan_sets(bundle.path)
    assert plans.path == result.path
    assert plans.name.endswith("-sm89+sm120-fp32-b1-64x64")
    for plan in plans.plans.values():
        assert plan.key.compute_capabilities == ("8.9", "12.0")
    # Weights are in the plans: 4.2 M in `full`, 4 bytes each.
    assert plans.plans["full"].content.bytes > 16e6
    open_bundle(bundle.path)


def test_second_time_does_nothing(tiny_plans_copy: Bundle) -> None:
    (before,) = plan_sets(tiny_plans_copy.path)
    result = compile_for(tiny_plans_copy, request_for())
    assert (result.compiled, result.reused) == ((), GRAPHS)
    assert result.path == before.path
    assert result.bytes == sum(plan.content.bytes for plan in before.plans.values())


def test_other_gpus_and_batches_have_sets_of_their_own(tiny_plans_copy: Bundle) -> None:
    (first,) = plan_sets(tiny_plans_copy.path)
    kept = contents(first.path)
    batch = Range(min=1, opt=2, max=4)
    result = compile_for(tiny_plans_copy, request_for("12.0", "8.9", batch=batch))
    assert result.path.name.endswith("-sm120+sm89-fp32-b1_2_4-16x16")
    sets = {plans.path: plans for plans in plan_sets(tiny_plans_copy.path)}
    assert sets.keys() == {first.path, result.path}
    key = sets[result.path].plans["gated"].key
    assert key.compute_capabilities == ("12.0", "8.9")
    assert key.shapes["sample"].max == (4, 4, 8, 8)
    assert contents(first.path) == kept
    open_bundle(tiny_plans_copy.path)


def test_only_what_changed_is_compiled(tiny_plans_copy: Bundle, tmp_path: Path) -> None:
    """As when a rebuild changes one graph: the new bundle gets the other graphs' plans."""
    manifest = tiny_plans_copy.manifest
    graph = manifest.graphs["gated"].file
    new = Path(shutil.copytree(tiny_plans_copy.path, tmp_path / "new"))
    shutil.rmtree(new / "plans")
    model = onnx.load(new / graph, load_external_data=False)
    model.doc_string = "changed"
    onnx.save(model, new / graph)
    changed = manifest.model_copy(
        update={"files": dict(manifest.files) | {graph: hash_file(new / graph)}}
    )
    (new / "manifest.json").write_text(changed.to_json())
    keep_plans(tiny_plans_copy.path, new, changed)
    result = compile_for(open_bundle(new), request_for())
    assert result.compiled == ("gated",)
    assert result.reused == tuple(name for name in GRAPHS if name != "gated")
    open_bundle(new)


def test_damaged_plan_is_compiled_again(tiny_plans_copy: Bundle) -> None:
    (plans,) = plan_sets(tiny_plans_copy.path)
    right = plans.file("sampler").read_bytes()
    plans.file("sampler").write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    result = compile_for(tiny_plans_copy, request_for())
    assert "sampler" in result.compiled
    open_bundle(tiny_plans_copy.path)


def test_interrupted_build_changes_nothing(tiny_plans_copy: Bundle, ctrl_c: None) -> None:
    class Interrupting(Progress):
        def advance(self, done: int, total: int) -> None:
            assert 0 <= done <= total
            if done > total / 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = {path.name: contents(path) for path in (tiny_plans_copy.path / "plans").iterdir()}
    ready = prepare(request_for("8.6"), tiny_plans_copy.manifest.batch)
    with pytest.raises(KeyboardInterrupt):
        compile_plans(tiny_plans_copy, ready, Interrupting())
    after = {path.name: contents(path) for path in (tiny_plans_copy.path / "plans").iterdir()}
    assert after == before


def test_key_holds_every_ingredient(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)

    def digest(graph: str = "gated", request: PlanRequest = request_for(), **compiler: str) -> str:  # noqa: B008
        ready = prepare(request, bundle.manifest.batch)
        ready = replace(ready, compiler=replace(ready.compiler, **compiler))
        return plan_key(bundle, graph, ready).digest()

    two = Range(min=2, opt=2, max=2)
    variants = [
        digest(),
        digest("full"),
        digest(request=request_for("12.0")),
        digest(request=request_for("8.9", "12.0")),
        digest(request=request_for(batch=two)),
        digest(version="1.8.0"),
        *(
            digest(request=request_for(settings=PlanSettings(**{name: value})))  # type: ignore[arg-type]
            for name, value in (
                ("optimization_level", 3),
                ("workspace_bytes", 1 << 30),
                ("weight_streaming", True),
                ("layer_info", True),
            )
        ),
    ]
    assert len(set(variants)) == len(variants)
    # Where timings are kept is not what a plan is.
    assert digest(request=request_for(timing_cache=Path("x"))) == digest()


def test_settings_reach_the_compiler(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    tight = PlanSettings(optimization_level=0, workspace_bytes=1)
    with pytest.raises(TGateError, match=r"cannot compile graph 'text_encoder': .*workspace limit"):
        compile_for(bundle, request_for(settings=tight))
    assert not list((bundle.path / "plans").iterdir())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (request_for("9.0"), r"cannot compile for SM 9.0: choose from 7.5, .*8.9, .*12.0"),
        (
            request_for(settings=PlanSettings(hardware_compatible=True)),
            "hardware compatibility is of",
        ),
        (
            request_for(settings=PlanSettings(version_compatible=True)),
            "version compatibility is of",
        ),
        (request_for(settings=PlanSettings(weights_stripped=True)), "stripping weights needs"),
        (request_for(batch=Range(min=1, opt=9, max=9)), "batch of 1:9:9 do not fit .* 1:1:8"),
    ],
)
def test_what_cannot_be_is_refused_first(request_: PlanRequest, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        prepare(request_, Range(min=1, opt=1, max=8))
