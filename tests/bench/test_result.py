"""The JSON schemas in the package are those of the models."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from tgate_export.bench import result as result_module
from tgate_export.bench.result import BenchResult, ProbeResult, ResultModel

FILES = {BenchResult: "bench.schema.json", ProbeResult: "probe.schema.json"}


def schema(model: type[ResultModel]) -> Path:
    return Path(result_module.__file__).with_name(FILES[model])


@pytest.mark.parametrize("model", FILES)
def test_schema_file_is_current(model: type[ResultModel]) -> None:
    # Write it anew: python -m tests.bench.test_result
    assert json.loads(schema(model).read_text()) == model.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(model.model_json_schema())


if __name__ == "__main__":
    for each in FILES:
        schema(each).write_text(json.dumps(each.model_json_schema(), indent=1) + "\n")
