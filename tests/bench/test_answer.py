"""The sentence of a report, on rows whose figures leave one answer, or none."""

from __future__ import annotations

import pytest

from tests.support.rows import ROUNDS, baseline, gated, plain
from tgate_export.bench.answer import answer
from tgate_export.bench.result import Answer, Row

# Every other round takes three times as long: no speed-up is beyond noise.
WILD = (0.5, 1.5, 0.5, 1.5, 1.5, 0.5)


def ask(*rows: Row, complete: bool = True) -> Answer:
    return answer("x", rows, complete=complete)


def test_plain_steps_that_do_as_well_are_used() -> None:
    found = ask(
        baseline(judged=True), gated(5, 0.6, lost=12, keeps=False), gated(10, 0.7, lost=0),
        plain(18, 0.7, lost=0), plain(15, 0.6, lost=0),
    )  # fmt: skip
    assert (found.use, found.gate) == ("x/15 plain steps", "x/gate 10 of 25")
    assert found.fewer_steps is not None
    assert (found.fewer_steps.row, found.fewer_steps.as_good) == ("x/15 plain steps", True)
    assert found.fewer_steps.speedup.value == pytest.approx(0.7 / 0.6)
    assert found.sentence == (
        "Use 15 plain steps without a gate: 1.67 times as fast as 25 plain steps (95 %: 1.64 to "
        "1.69), 128 of 128 pictures show what the prompt says (128 at 25 plain steps); gate 10 of "
        "25, the best gate, does no better: 1.43 times, 128 pictures."
    )


def test_gate_is_used_where_plain_steps_in_its_time_break_the_bound() -> None:
    found = ask(baseline(judged=True), gated(10, 0.7, lost=0), plain(18, 0.69, lost=9, keeps=False))
    assert (found.use, found.gate) == ("x/gate 10 of 25", "x/gate 10 of 25")
    assert found.fewer_steps is not None
    assert found.fewer_steps.as_good is False
    assert found.sentence.endswith(
        "(128 at 25 plain steps); 18 plain steps do not do as well: 1.45 times, 119 pictures."
    )


@pytest.mark.parametrize(
    ("ssims", "as_good"),
    [
        # Mean difference 0.02 below; pictures agree on it, or do not.
        ([0.88, 0.881, 0.879, 0.88], False),
        ([0.80, 0.96, 0.82, 0.94], True),
        ([0.95, 0.95, 0.95, 0.95], True),
    ],
)
def test_quality_within_noise_is_as_good(ssims: list[float], as_good: bool) -> None:
    found = ask(baseline(), gated(10, 0.7), plain(18, 0.7, ssims=ssims))
    assert found.fewer_steps is not None
    assert found.fewer_steps.as_good is as_good
    assert found.use == ("x/18 plain steps" if as_good else "x/gate 10 of 25")
    seems_better = as_good and sum(ssims) < 4 * 0.9
    assert ("does no better beyond noise: " in found.sentence) is seems_better


@pytest.mark.parametrize(("seconds", "as_good"), [(0.715, True), (0.8, False)])
def test_whole_steps_may_take_half_a_step_longer(seconds: float, as_good: bool) -> None:
    # Half a step of 18 is 2.8 %.
    found = ask(baseline(), gated(10, 0.7), plain(18, seconds))
    assert found.fewer_steps is not None
    assert found.fewer_steps.as_good is as_good


def test_of_gates_the_fastest_that_keeps_the_quality() -> None:
    found = ask(
        baseline(judged=True), gated(15, 0.8, lost=0), gated(10, 0.7, lost=0),
        gated(5, 0.6, lost=12, keeps=False),
    )  # fmt: skip
    assert found.use == "x/gate 10 of 25"
    assert found.fewer_steps is None
    assert found.sentence.endswith("; fewer plain steps were not tried.")


def test_of_gates_as_fast_the_one_of_best_quality() -> None:
    better = {"cache_blend": 1.0, "guidance_carry": 0.5}
    found = ask(
        baseline(judged=True), gated(5, 0.600, lost=1),
        gated(5, 0.601, lost=0, parameters=better, noise=ROUNDS[::-1]), gated(8, 0.7, lost=0),
    )  # fmt: skip
    assert found.gate == "x/gate 5 of 25, cache blend 1, guidance carry 0.5"
    assert found.sentence.startswith("Use gate 5 of 25, cache blend 1, guidance carry 0.5: 1.66 ")


def test_nothing_keeps_the_quality() -> None:
    rows = [
        gated(5, 0.6, ssims=[0.7] * 4, keeps=False),
        gated(10, 0.7, ssims=[0.8] * 4, keeps=False),
    ]
    found = ask(baseline(), *rows)
    assert (found.use, found.gate) == ("x/25 steps, no gate", None)
    assert found.sentence == (
        "Use 25 steps without a gate: nothing faster that was tried keeps the quality, gate 10 of "
        "25 comes closest with SSIM 0.800."
    )


def test_no_gate_keeps_the_quality_but_plain_steps_do() -> None:
    found = ask(baseline(), gated(5, 0.6, keeps=False), plain(14, 0.6), plain(12, 0.5))
    assert (found.use, found.gate, found.fewer_steps) == ("x/12 plain steps", None, None)
    assert "no gate that was tried keeps the quality and is faster beyond noise" in found.sentence
    assert "mean SSIM to their pictures 0.900 (4 pictures)" in found.sentence


def test_a_speed_up_within_noise_is_none() -> None:
    quiet = plain(24, 0.98, keeps=False)
    found = ask(baseline(), gated(10, 0.9, noise=WILD), quiet)
    assert found.use == "x/25 steps, no gate"
    assert found.sentence.endswith(
        "what keeps the quality is not faster beyond noise (gate 10 of 25: 1.11 times, 95 %: 0.74 "
        "to 2.22)."
    )


def test_one_round_or_an_interrupted_one_says_nothing() -> None:
    rows = [baseline(rounds=1), gated(10, 0.7, noise=[1.0])]
    assert ask(*rows).use is None
    assert "One round says nothing of noise" in ask(*rows).sentence
    found = ask(baseline(), gated(10, 0.7), complete=False)
    assert (found.use, found.sentence) == (
        None, "Interrupted: too little was measured to say what to use.",
    )  # fmt: skip
    assert ask(complete=False).use is None


def test_same_rows_same_answer() -> None:
    rows = [baseline(), gated(10, 0.7, noise=WILD), plain(18, 0.7)]
    assert ask(*rows) == ask(*rows)
