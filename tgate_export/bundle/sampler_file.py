"""The file format of sampler tables.

A file holds one table, as JSON, with exactly these fields:

    {"schema_version": 2, "name": str, "scheduler_class": str, "prediction_type": str,
     "history": int, "extra_evaluations": int, "residual": number,
     "steps": [{"num_inference_steps": int, "sample_scale": number, "input_scale": number,
                "timesteps": [N numbers], "weights": [N rows of K numbers],
                "step_of_evaluation": [N ints],
                "starts": [{"image_scale": number, "sample_scale": number, "input_scale": number,
                            "weights": [R rows of K numbers]}, ...]}, ...]}

Numbers of `timesteps` and `weights` and the scales are the shortest decimals that read back as the
same 32-bit floats, whether parsed as float or as double and then rounded. `starts` is empty, or has
an entry for every step of the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tgate_export.bundle.sampler_table import (
    NUM_WEIGHTS,
    FloatArray,
    SamplerStart,
    SamplerSteps,
    SamplerTable,
)
from tgate_export.common.json_file import TABLE_BYTES, read_json

SCHEMA_VERSION = 2


def write_sampler_table(table: SamplerTable, path: Path) -> None:
    """Write a table as JSON; `read_sampler_table` gives back the same 32-bit floats."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": table.name,
        "scheduler_class": table.scheduler_class,
        "prediction_type": table.prediction_type,
        "history": table.history,
        "extra_evaluations": table.extra_evaluations,
        "residual": table.residual,
        "steps": [
            {
                "num_inference_steps": count,
                "sample_scale": _shortest(np.float32(steps.sample_scale)),
                "input_scale": _shortest(np.float32(steps.input_scale)),
                "timesteps": [_shortest(value) for value in steps.timesteps],
                "weights": _rows(steps.weights),
                "step_of_evaluation": list(steps.step_of_evaluation),
                "starts": [
                    {
                        "image_scale": _shortest(np.float32(start.image_scale)),
                        "sample_scale": _shortest(np.float32(start.sample_scale)),
                        "input_scale": _shortest(np.float32(start.input_scale)),
                        "weights": _rows(start.weights),
                    }
                    for start in steps.starts
                ],
            }
            for count, steps in sorted(table.steps.items())
        ],
    }
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_sampler_table(path: Path) -> SamplerTable:
    """Read a table.

    Raises:
        OSError: when the file cannot be read.
        ValueError: when it is not a sampler table; names the file and the field.
    """
    try:
        return _parse(read_json(path, TABLE_BYTES))
    except ValueError as error:
        raise ValueError(f"{path} is not a sampler table: {error}") from None


def _parse(document: Any) -> SamplerTable:
    top = _fields(document, "", _HEADER)
    if top["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"schema_version: expected {SCHEMA_VERSION}, {top['schema_version']}")
    steps: dict[int, SamplerSteps] = {}
    for index, entry in enumerate(top.pop("steps")):
        where = f"steps[{index}]."
        values = _fields(entry, where, _STEPS)
        _check_numbers(values["timesteps"], f"{where}timesteps", depth=1)
        _check_numbers(values["weights"], f"{where}weights", depth=2)
        _check_whole(values["step_of_evaluation"], f"{where}step_of_evaluation")
        count = values["num_inference_steps"]
        if count in steps:
            raise ValueError(f"{where}num_inference_steps: {count} is there twice")
        starts = tuple(
            _start(start, f"{where}starts[{number}].")
            for number, start in enumerate(values["starts"])
        )
        try:
            steps_of = tuple(values["step_of_evaluation"])
            steps[count] = SamplerSteps(
                **values | {"starts": starts, "step_of_evaluation": steps_of}
            )
        except ValueError as error:
            raise ValueError(f"{where}{error}") from None
    del top["schema_version"]
    return SamplerTable(**top, steps=steps)


def _start(entry: Any, where: str) -> SamplerStart:
    values = _fields(entry, where, _START)
    _check_numbers(values["weights"], f"{where}weights", depth=2)
    # No rows have no width.
    rows = values["weights"] or np.empty((0, NUM_WEIGHTS))
    try:
        return SamplerStart(**values | {"weights": rows})
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


_HEADER: dict[str, type] = {
    **dict.fromkeys(("schema_version", "history", "extra_evaluations"), int),
    **dict.fromkeys(("name", "scheduler_class", "prediction_type"), str),
    "residual": float,
    "steps": list,
}
_STEPS: dict[str, type] = {
    "num_inference_steps": int,
    "sample_scale": float,
    "input_scale": float,
    **dict.fromkeys(("timesteps", "weights", "step_of_evaluation", "starts"), list),
}
_START: dict[str, type] = {
    **dict.fromkeys(("image_scale", "sample_scale", "input_scale"), float),
    "weights": list,
}


def _fields(found: Any, where: str, expected: dict[str, type]) -> dict[str, Any]:
    """Return a JSON object's fields after checking that they are these, of these types."""
    if not isinstance(found, dict):
        raise ValueError(f"{where or 'document'}: expected an object, {type(found).__name__}")
    for field, kind in expected.items():
        if field not in found:
            raise ValueError(f"{where}{field}: missing")
        allowed = (int, float) if kind is float else (kind,)
        if type(found[field]) not in allowed:
            raise ValueError(
                f"{where}{field}: expected {kind.__name__}, found {type(found[field]).__name__}"
            )
        if kind is float:
            _check_size(found[field], f"{where}{field}")
    for field in found.keys() - expected.keys():
        raise ValueError(f"{where}{field}: unknown field")
    return dict(found)


def _check_size(value: float, where: str) -> None:
    """Check that a whole number, which has any length in JSON, is one of 64-bit floats."""
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{where}: not finite in 32 bits") from None


def _check_numbers(values: list[Any], where: str, depth: int) -> None:
    """Check types here, as numpy takes booleans and numeric strings, and row lengths by name."""
    for index, value in enumerate(values):
        if depth > 1:
            if not isinstance(value, list):
                raise ValueError(f"{where}[{index}]: expected a list, {type(value).__name__}")
            if len(value) != NUM_WEIGHTS:
                raise ValueError(
                    f"{where}[{index}]: expected {NUM_WEIGHTS} numbers, found {len(value)}"
                )
            _check_numbers(value, f"{where}[{index}]", depth - 1)
        elif type(value) not in (int, float):
            raise ValueError(f"{where}[{index}]: expected a number, {type(value).__name__}")


def _check_whole(values: list[Any], where: str) -> None:
    if not values:
        raise ValueError(f"{where}: expected a number or more, found none")
    for index, value in enumerate(values):
        if type(value) is not int or abs(value) >= 2**31:
            raise ValueError(f"{where}[{index}]: expected a whole number of 32 bits")


def _rows(weights: FloatArray) -> list[list[float]]:
    return [[_shortest(value) for value in row] for row in weights]


def _shortest(value: np.float32) -> float:
    """Return the double that prints as the shortest decimal of a 32-bit float."""
    short = float(str(value))
    return short if np.float32(short) == value else float(value)
