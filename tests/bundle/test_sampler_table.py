"""The sampler table's file format: what is written is read back bit for bit, or refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tgate_export.bundle.sampler_file import read_sampler_table, write_sampler_table
from tgate_export.bundle.sampler_table import (
    HISTORY,
    NUM_WEIGHTS,
    SamplerStart,
    SamplerSteps,
    SamplerTable,
    advance,
)

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


def make_steps(
    count: int, extra: int = 0, seed: int = 0, starts: tuple[SamplerStart, ...] = ()
) -> SamplerSteps:
    rng = np.random.default_rng(seed)
    return SamplerSteps(
        num_inference_steps=count,
        timesteps=np.linspace(999, 1, count + extra, dtype=np.float32),
        sample_scale=float(np.float32(14.614647)),
        input_scale=float(np.float32(0.1)),
        weights=rng.standard_normal((count + extra, NUM_WEIGHTS), dtype=np.float32),
        starts=starts,
    )


def make_starts(*rows: int) -> tuple[SamplerStart, ...]:
    """One start for each number of rows that are its own."""
    rng = np.random.default_rng(9)
    return tuple(
        SamplerStart(*rng.random(3), rng.standard_normal((count, NUM_WEIGHTS))) for count in rows
    )


def make_table(*steps: SamplerSteps) -> SamplerTable:
    return SamplerTable(
        name="pndm",
        scheduler_class="PNDMScheduler",
        prediction_type="epsilon",
        history=3,
        extra_evaluations=max(entry.extra_evaluations for entry in steps),
        steps={entry.num_inference_steps: entry for entry in steps},
        residual=5.6e-7,
    )


def assert_same_bits(found: SamplerTable, expected: SamplerTable) -> None:
    for field in ("name", "scheduler_class", "prediction_type", "history", "extra_evaluations"):
        assert getattr(found, field) == getattr(expected, field)
    assert found.residual == expected.residual
    assert list(found.steps) == list(expected.steps)
    for count, steps in expected.steps.items():
        assert found.steps[count].weights.tobytes() == steps.weights.tobytes()
        assert found.steps[count].timesteps.tobytes() == steps.timesteps.tobytes()
        for mine, start in zip(found.steps[count].starts, steps.starts, strict=True):
            assert mine.weights.tobytes() == start.weights.tobytes()
            for field in ("image_scale", "sample_scale", "input_scale"):
                assert getattr(mine, field) == getattr(start, field)
        for field in ("sample_scale", "input_scale"):
            same = np.float32(getattr(steps, field)).tobytes()
            assert np.float32(getattr(found.steps[count], field)).tobytes() == same


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    table = make_table(
        make_steps(1, starts=make_starts(0)),
        make_steps(2, extra=1, seed=1, starts=make_starts(3, 1)),
        make_steps(25, seed=2),
    )
    path = tmp_path / "pndm.json"
    write_sampler_table(table, path)
    assert_same_bits(read_sampler_table(path), table)


@settings(max_examples=50, deadline=None)
@given(
    weights=arrays(np.float32, (2, NUM_WEIGHTS), elements=FLOATS),
    timesteps=arrays(np.float32, (2,), elements=FLOATS),
    sample_scale=FLOATS,
    input_scale=FLOATS,
)
def test_round_trip_of_any_floats(
    weights: np.ndarray, timesteps: np.ndarray, sample_scale: float, input_scale: float
) -> None:
    table = make_table(SamplerSteps(2, timesteps, sample_scale, input_scale, weights))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        write_sampler_table(table, path)
        assert_same_bits(read_sampler_table(path), table)


def test_numbers_are_the_shortest_decimals(tmp_path: Path) -> None:
    steps = make_steps(1)
    path = tmp_path / "table.json"
    write_sampler_table(make_table(steps), path)
    assert '"input_scale":0.1,' in path.read_text()
    assert '"sample_scale":14.614647,' in path.read_text()


def test_for_steps_says_what_there_is() -> None:
    table = make_table(*(make_steps(count) for count in (1, 2, 3, 7)))
    assert table.for_steps(3).num_inference_steps == 3
    with pytest.raises(ValueError, match=r"'pndm' has no table for 5 steps; available: 1-3, 7"):
        table.for_steps(5)


def test_a_later_start_has_rows_of_its_own_and_then_the_same() -> None:
    steps = make_steps(4, extra=1, starts=make_starts(0, 2, 1, 0))
    later = steps.starting_at(1)
    assert (later.num_inference_steps, later.extra_evaluations) == (3, 1)
    assert later.timesteps.tolist() == steps.timesteps[1:].tolist()
    assert later.weights[:2].tolist() == steps.starts[1].weights.tolist()
    assert later.weights[2:].tolist() == steps.weights[3:].tolist()
    assert later.image_scale == steps.starts[1].image_scale
    assert steps.image_scale == 0.0
    assert steps.starting_at(0).weights.tolist() == steps.weights.tolist()


def test_a_later_start_of_two_evaluations_a_step() -> None:
    steps = SamplerSteps(
        3, make_steps(3, 2).timesteps, 1.0, 1.0, make_steps(3, 2).weights,
        starts=make_starts(0, 2, 0), step_of_evaluation=(0, 0, 1, 1, 2),
    )  # fmt: skip
    assert steps.extra_evaluations == 2
    later = steps.starting_at(1)
    assert later.num_inference_steps == 2
    assert later.step_of_evaluation == (0, 0, 1)
    assert later.timesteps.tolist() == steps.timesteps[2:].tolist()
    assert later.weights[:2].tolist() == steps.starts[1].weights.tolist()
    assert later.weights[2:].tolist() == steps.weights[4:].tolist()
    assert steps.starting_at(2).weights.tolist() == steps.weights[4:].tolist()


def test_a_run_in_two_parts() -> None:
    """All evaluations of a step belong to one part."""
    steps = make_steps(4, starts=make_starts(1, 1, 1, 1))  # at 999, 666.3, 333.7 and 1
    assert [steps.evaluations_until(t) for t in (2000, 999.5, 500, 1.5, 1, 0)] == [0, 0, 2, 3, 4, 4]
    first, second = steps.ending_before(2), steps.starting_at(2, noised=True)
    assert (first.num_inference_steps, second.num_inference_steps) == (2, 2)
    assert [*first.timesteps, *second.timesteps] == [*steps.timesteps]
    assert first.weights.tolist() == steps.weights[:2].tolist()
    assert first.sample_scale == steps.sample_scale
    assert (second.sample_scale, second.image_scale) == (0, 1)
    assert second.input_scale == steps.starts[2].input_scale
    twice = SamplerSteps(
        3, np.array([9, 6, 6, 3, 3], np.float32), 1, 1, make_steps(5).weights,
        step_of_evaluation=(0, 0, 1, 1, 2),
    )  # fmt: skip
    assert [twice.evaluations_until(t) for t in (9, 7, 6, 4, 3)] == [2, 2, 4, 4, 5]
    assert twice.ending_before(4).step_of_evaluation == (0, 0, 1, 1)


def test_advance_is_the_documented_sum() -> None:
    weights = np.arange(1, NUM_WEIGHTS + 1, dtype=np.float32)
    history = np.array([[100.0], [1000.0], [10000.0]], dtype=np.float32)
    next_sample, denoiser_input, next_history = advance(
        weights, np.float32([1.0]), np.float32([10.0]), history, np.float32([100000.0])
    )
    assert next_sample == [1 * 1 + 2 * 10 + 3 * 100 + 4 * 1000 + 5 * 10000 + 9 * 100000]
    assert denoiser_input == 8 * next_sample
    assert next_history.tolist() == [[6 * 1 + 7 * 10], [100.0], [1000.0]]
    assert next_history.shape == (HISTORY, 1)


def test_arrays_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        make_steps(2).weights[0, 0] = 1.0


def edit(document: dict[str, Any], path: list[Any], value: Any) -> None:
    target: Any = document
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema_version"], 1, "schema_version: expected 2"),
        (["name"], KeyError, "name: missing"),
        (["name"], 3, "name: expected str, found int"),
        (["surprise"], 3, "surprise: unknown field"),
        (["history"], True, "history: expected int, found bool"),
        (["history"], 4, "history: expected 0 to 3"),
        (["extra_evaluations"], 1, "extra_evaluations: 1, but steps have 0"),
        (["residual"], float("nan"), "NaN is not a finite number"),
        (["residual"], 10**400, "residual: not finite"),
        (["steps", 0, "sample_scale"], 10**400, r"steps\[0\]\.sample_scale: not finite"),
        (["steps", 1, "weights", 0, 2], 10**400, r"steps\[1\]\.weights: not finite"),
        (["residual"], -1.0, "residual: expected a finite number"),
        (["steps"], [], "steps: expected one step count or more"),
        (["steps"], {}, "steps: expected list, found dict"),
        (["steps", 0], 1, r"steps\[0\]\.: expected an object"),
        (["steps", 1, "num_inference_steps"], 1, r"steps\[1\]\.num_inference_steps: 1 is there tw"),
        (["steps", 0, "num_inference_steps"], 0, r"steps\[0\]\.num_inference_steps: expected 1"),
        (["steps", 0, "sample_scale"], "1", r"steps\[0\]\.sample_scale: expected float, found str"),
        (["steps", 0, "input_scale"], 1e39, r"steps\[0\]\.input_scale: not finite"),
        (["steps", 1, "timesteps"], [1.0], r"steps\[1\]\.timesteps: expected 2 numbers or more"),
        (["steps", 1, "timesteps", 1], True, r"steps\[1\]\.timesteps\[1\]: expected a number"),
        (["steps", 1, "weights", 0], [1.0], r"steps\[1\]\.weights\[0\]: expected 9 numbers, fou"),
        (["steps", 1, "weights", 0], 1.0, r"steps\[1\]\.weights\[0\]: expected a list, float"),
        (["steps", 1, "weights", 0, 2], None, r"weights\[0\]\[2\]: expected a number, NoneType"),
        (["steps", 1, "weights", 0, 2], 1e39, r"steps\[1\]\.weights: not finite"),
        (["steps", 1, "step_of_evaluation"], KeyError, r"steps\[1\]\.step_of_evaluation: missing"),
        (["steps", 1, "step_of_evaluation", 0], 0.0, r"evaluation\[0\]: expected a whole number"),
        (["steps", 1, "step_of_evaluation", 0], True, r"evaluation\[0\]: expected a whole number"),
        (["steps", 1, "step_of_evaluation", 0], 2**31, r"evaluation\[0\]: expected a whole number"),
        (["steps", 1, "step_of_evaluation"], [], r"step_of_evaluation: expected a number or more"),
        (["steps", 1, "step_of_evaluation"], [0], r"step_of_evaluation: expected 2 numbers"),
        (["steps", 1, "step_of_evaluation"], [1, 1], r"step_of_evaluation: expected 2 numbers"),
        (["steps", 1, "step_of_evaluation"], [0, 0], r"step_of_evaluation: expected 2 numbers"),
        (["steps", 1, "step_of_evaluation"], [-1, 1], r"step_of_evaluation: expected 2 numbers"),
        (["steps", 1, "starts"], KeyError, r"steps\[1\]\.starts: missing"),
        (["steps", 1, "starts", 0], 1.0, r"steps\[1\]\.starts\[0\]\.: expected an object"),
        (["steps", 1, "starts", 0, "image_scale"], 1e39, r"starts\[0\]\.image_scale: not finite"),
        (["steps", 1, "starts", 1, "weights", 0], [1.0], r"starts\[1\]\.weights\[0\]: expected 9"),
        (["steps", 0, "starts"], [{}], r"steps\[0\]\.starts\[0\]\.image_scale: missing"),
        (
            ["steps", 1, "starts", 1, "weights"],
            [[0.0] * 9] * 2,
            r"starts\[1\]\.weights: expected 1",
        ),
        (["steps", 1, "weights"], [[0.0] * 9], r"steps\[1\]\.weights: expected shape \[2, 9\]"),
    ],
)
def test_a_wrong_file_is_refused_by_field(
    tmp_path: Path, path: list[Any], value: Any, message: str
) -> None:
    file = tmp_path / "pndm.json"
    write_sampler_table(make_table(make_steps(1), make_steps(2, starts=make_starts(1, 1))), file)
    document = json.loads(file.read_text())
    edit(document, path, value)
    file.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=message) as caught:
        read_sampler_table(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"a": 1, "a": 2}', "\xff", '{"schema_version": Infinity}'],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"broken\.json is not a sampler table"):
        read_sampler_table(file)
