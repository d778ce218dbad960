"""The step plan against the official one, step by step and cache by cache."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tgate.tgate_utils import tgate_scheduler

from tests.support.step_plans import tgate_plan
from tgate_export.methods import tgate
from tgate_export.methods.tgate_v2 import METHOD
from tgate_export.steps.step_plan import Evaluation

POSITIVE = st.integers(min_value=1, max_value=60)
INTERVAL = st.integers(min_value=1, max_value=8)


@st.composite
def gatings(draw: st.DrawFn) -> dict[str, int]:
    gate = draw(st.integers(min_value=1, max_value=30))
    return {
        "gate_step": gate,
        "sp_interval": draw(INTERVAL),
        "fi_interval": draw(INTERVAL),
        "warm_up": draw(st.integers(min_value=0, max_value=gate)),
    }


def official(cur_step: int, **gating: int) -> tuple[dict[str, bool], dict[str, bool], bool]:
    """What the official loop tells attention; it does not ask before its first counted step."""
    if cur_step < 0:
        none = {"cache": False, "reuse": False}
        return none, none, True
    cross, own, keep_shape = tgate_scheduler(cur_step=cur_step, **gating)
    return cross, own, keep_shape


@settings(max_examples=500)
@given(steps=POSITIVE, extra=st.integers(min_value=0, max_value=1), gating=gatings())
@example(
    steps=25, extra=0, gating={"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2}
)  # the official default
def test_equals_the_official_scheduler(steps: int, extra: int, gating: dict[str, int]) -> None:
    """The graph says what is reused, and every cache that is read is from the same step."""
    found = tgate_plan(steps, gating["gate_step"], extra, **without_gate(gating))
    assert len(found.evaluations) == steps + extra
    # Where each cache was written last: for theirs, and by name for ours.
    cross_at: int | None = None
    own_at: int | None = None
    own_is_mean = False
    written: dict[str, int] = {}
    last_guided: int | None = None
    for index, evaluation in enumerate(found.evaluations):
        cross, own, keep_shape = official(index - extra, **gating)
        graphs = {
            (False, False): "full", (False, True): "full_reuse",
            (True, False): "gated", (True, True): "gated_reuse",
        }  # fmt: skip
        assert evaluation.phase == graphs[cross["reuse"], own["reuse"]]
        if cross["reuse"]:
            assert written["cross_cache"] == cross_at
            assert written["guidance_delta"] == last_guided
        else:
            last_guided = index
        if own["reuse"]:
            # From the gate on one pass is left, and so the cache has to be one.
            kind = "self_cache" if cross["reuse"] else "self_passes"
            assert own_is_mean == (kind == "self_cache")
            assert written[kind] == own_at
        if cross["cache"]:
            assert not keep_shape
            cross_at = index
        if own["cache"]:
            own_at, own_is_mean = index, cross["reuse"] or not keep_shape
        written |= dict.fromkeys(evaluation.writes, index)


def without_gate(gating: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in gating.items() if name != "gate_step"}


@given(steps=POSITIVE, gating=gatings())
def test_what_is_read_was_written_and_what_is_written_is_read(
    steps: int, gating: dict[str, int]
) -> None:
    evaluations = tgate_plan(steps, **gating).evaluations
    unread: set[str] = set()
    held: set[str] = set()
    for evaluation in evaluations:
        assert held.issuperset(evaluation.reads)
        unread.difference_update(evaluation.reads)
        assert unread.isdisjoint(evaluation.writes)
        unread.update(evaluation.writes)
        held.update(evaluation.writes)
    assert not unread


@given(steps=POSITIVE, gate=POSITIVE)
def test_version_1_is_two_graphs_and_one_cache(steps: int, gate: int) -> None:
    step_plan = tgate.METHOD.plan({"gate_step": gate}, range(steps))
    assert step_plan.phases == tgate_plan(steps, gate).phases  # version 2 with intervals of 1
    full = min(gate, steps)
    assert step_plan.phases == ("full",) * full + ("gated",) * (steps - full)
    for index, evaluation in enumerate(step_plan.evaluations):
        caches = ("cross_cache", "guidance_delta")
        writes = caches if index + 1 == gate < steps else ()
        reads = caches if index >= gate else ()
        assert evaluation == Evaluation(evaluation.phase, reads, writes)


@given(
    steps=st.integers(min_value=1, max_value=20),
    twice=st.lists(st.booleans(), min_size=20, max_size=20),
    before=st.integers(min_value=0, max_value=2),
    gating=gatings(),
)
def test_all_evaluations_of_a_step_run_its_phase(
    steps: int, twice: list[bool], before: int, gating: dict[str, int]
) -> None:
    """A gate counts steps: those before it are full, however often they evaluate."""
    once = tgate_plan(steps, gating["gate_step"], **without_gate(gating)).phases
    numbers = [*range(-before, 0)]
    for step in range(steps):
        numbers += [step] * (1 + twice[step])
    found = METHOD.plan(gating, numbers)
    assert found.num_inference_steps == steps
    assert found.phases == ("full",) * before + tuple(once[step] for step in numbers[before:])
    # What a later evaluation reads is of the last one that could write it, not of the first.
    for index, evaluation in enumerate(found.evaluations):
        for name in evaluation.writes:
            after = found.evaluations[index + 1 :]
            read = next(i for i, other in enumerate(after) if name in other.reads)
            assert not any(name in other.writes for other in after[:read])


@pytest.mark.parametrize("steps", [0, -3])
def test_refuses(steps: int) -> None:
    with pytest.raises(ValueError, match=r"^num_inference_steps must be at least 1"):
        tgate_plan(steps, 5)
