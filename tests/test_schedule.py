from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tgate.tgate_utils import tgate_scheduler

from tgate_export.schedule import gate_schedule

POSITIVE = st.integers(min_value=1, max_value=60)


@given(steps=POSITIVE, gate=POSITIVE, extra=st.integers(min_value=0, max_value=2))
def test_equals_the_official_scheduler(steps: int, gate: int, extra: int) -> None:
    """The official code reuses cross-attention from cur_step = gate on, counted after `extra`."""
    schedule = gate_schedule(steps, gate, extra)
    assert len(schedule.phases) == steps + extra
    for evaluation, phase in enumerate(schedule.phases):
        cross_attention, _, _ = tgate_scheduler(
            cur_step=evaluation - extra, gate_step=gate, sp_interval=1, fi_interval=1, warm_up=0
        )
        assert (phase == "gated") == cross_attention["reuse"]


@given(steps=POSITIVE, gate=POSITIVE)
def test_cache_is_written_right_before_the_gate(steps: int, gate: int) -> None:
    phases = gate_schedule(steps, gate).phases
    if "gated" in phases:
        first = phases.index("gated")
        cross_attention, _, _ = tgate_scheduler(cur_step=first - 1, gate_step=gate)
        assert cross_attention["cache"]
        assert phases[first - 1] == "full"


def test_counts() -> None:
    schedule = gate_schedule(25, 10)
    assert (schedule.full_evaluations, schedule.gated_evaluations) == (10, 15)
    assert gate_schedule(25, 25).gated_evaluations == 0
    assert gate_schedule(25, 99).gated_evaluations == 0


@pytest.mark.parametrize(("steps", "gate"), [(0, 1), (-3, 1), (10, 0), (10, -1)])
def test_refuses(steps: int, gate: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        gate_schedule(steps, gate)
