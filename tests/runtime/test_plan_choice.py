"""Which plan set runs where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgate_export.bundle.plans import (
    Plan,
    PlanKey,
    PlanSet,
    PlanSettings,
    ShapeRange,
)
from tgate_export.common.hints import Build
from tgate_export.runtime.backends.base import BackendError
from tgate_export.runtime.backends.plan_choice import Machine, batch_size, choose

HASH = "0" * 64
ADA = Machine("tensorrt-rtx", "1.7.1.116", "8.9")
BATCH = {"full": {"sample": (2, 4, 8, 8)}}


def plan_set(
    name: str,
    *,
    version: str = "1.7.1.116",
    gpus: tuple[str, ...] = ("8.9",),
    batch: tuple[int, int, int] = (1, 1, 8),
    settings: PlanSettings | None = None,
    graphs: tuple[str, ...] = ("full",),
) -> PlanSet:
    low, opt, high = ((count, 4, 8, 8) for count in batch)
    plans = {}
    for graph in graphs:
        key = PlanKey(
            graph=graph,
            graph_sha256=HASH,
            weights_sha256=None,
            library="tensorrt-rtx",
            version=version,
            compute_capabilities=gpus,
            precision="fp16",
            shapes={"sample": ShapeRange(min=low, opt=opt, max=high)},
            settings=settings or PlanSettings(),
            code_sha256=HASH,
        )
        content = {"sha256": HASH, "bytes": 1}
        plans[graph] = Plan.model_validate(
            {"file": "x", "content": content, "key": key, "key_sha256": key.digest()}
        )
    return PlanSet(Path(name), plans)


def chosen(*sets: PlanSet, machine: Machine = ADA) -> str:
    return choose(sets, machine, BATCH, Build({"model": "x"})).name


def test_one_shape_goes_before_a_range() -> None:
    ranged, static = plan_set("a"), plan_set("b", batch=(2, 2, 2))
    assert chosen(ranged, static) == "b"
    assert chosen(ranged, plan_set("b", batch=(1, 1, 1))) == "a"


def test_any_of_several_gpus() -> None:
    assert chosen(plan_set("a", gpus=("8.9", "12.0"))) == "a"


@pytest.mark.parametrize(
    ("sets", "runs"),
    [
        ([(1, 1, 8)], [6]),
        ([(1, 1, 1)], [1] * 6),
        ([(1, 1, 1), (4, 4, 4)], [4, 1, 1]),
        ([(1, 1, 4)], [4, 2]),
        ([(4, 4, 4)], [4, 2]),  # which is refused later, with the list
    ],
)
def test_batches_are_those_that_plans_take(
    sets: list[tuple[int, int, int]], runs: list[int]
) -> None:
    plans = [plan_set(str(index), batch=batch) for index, batch in enumerate(sets)]
    plans.append(plan_set("foreign", batch=(1, 1, 8), version="1.6.0.1"))
    found, left = [], 6
    while left:
        found.append(batch_size(plans, ADA, left))
        left -= found[-1]
    assert found == runs


def test_every_misfit_is_listed_with_the_command() -> None:
    sets = [
        plan_set("a", version="1.6.0.1"),
        plan_set("b", gpus=("8.6", "12.0")),
        plan_set("c", batch=(1, 1, 1)),
        plan_set("d", graphs=("gated",)),
        plan_set("e", version="1.6.0.1", gpus=("8.6",), batch=(4, 4, 4)),
    ]
    with pytest.raises(BackendError) as caught:
        chosen(*sets)
    assert str(caught.value) == (
        "no tensorrt-rtx plans for tensorrt-rtx 1.7.1.116 on compute capability 8.9 fit ("
        "a: version 1.6.0.1; "
        "b: compute capability 8.6 and 12.0; "
        "c: full's sample 1x4x8x8, not 2x4x8x8; "
        "d: no plan of 'full'; "
        "e: version 1.6.0.1, compute capability 8.6, full's sample 4x4x8x8, not 2x4x8x8"
        "): make some with `build_bundle(model='x')`, or use backend='onnxruntime'"
    )


@pytest.mark.parametrize(
    ("built", "fits"),
    [("1.7.1.116", True), ("1.6.0.1", True), ("1.8.0.1", False), ("2.0.0.1", False)],
)
def test_version_compatible_plans_run_on_later_versions(built: str, fits: bool) -> None:
    plans = plan_set("a", version=built, settings=PlanSettings(version_compatible=True))
    if fits:
        assert chosen(plans) == "a"
    else:
        with pytest.raises(BackendError, match=f"version {built}"):
            chosen(plans)


@pytest.mark.parametrize(("gpu", "fits"), [("8.0", True), ("12.0", True), ("7.5", False)])
def test_hardware_compatible_plans_run_on_ampere_and_later(gpu: str, fits: bool) -> None:
    plans = plan_set("a", settings=PlanSettings(hardware_compatible=True))
    machine = Machine("tensorrt", "1.7.1.116", gpu)
    if fits:
        assert chosen(plans, machine=machine) == "a"
    else:
        with pytest.raises(BackendError, match="compute capability 8"):
            chosen(plans, machine=machine)
