"""The made-up scalar and picture of `tests.e2e.test_additions`, in C++."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.test_additions import (  # noqa: F401 - fixtures
    PIXELS,
    PROMPTS,
    RUN,
    TINTS,
    bundle,
    gated,
    made_up,
    pipeline,
)
from tests.embed.test_cpp_run import array, texts
from tests.support.cpp_driver import CppBuild, Driver


def request(**parameters: Any) -> dict[str, Any]:
    pictures = PIXELS.astype(np.float32) / 255
    images = {"picture": {"shape": list(pictures.shape), "data": pictures.ravel().tolist()}}
    return {
        "prompt": texts(*PROMPTS), "gate_step": 2, **RUN, "images": images,
        "parameters": parameters,
    }  # fmt: skip


def test_latents_are_those_of_python(
    driver: Driver,
    bundle: Path,  # noqa: F811
    gated: np.ndarray,  # noqa: F811
) -> None:
    found = driver("run", bundle=str(bundle), request=request(tint=TINTS))
    latents = np.concatenate([array(part) for part in found["latents"]])
    np.testing.assert_allclose(latents, gated, atol=1e-4)
    assert found["parameters"]["tint"] == TINTS[0]


@pytest.mark.parametrize("tint", [3, "much", [1, 1, 1]])
def test_refusals_name_the_parameter(driver: Driver, bundle: Path, tint: Any) -> None:  # noqa: F811
    reply = driver("run", bundle=str(bundle), request=request(tint=tint))
    assert reply["field"] == "tint"
    assert "tint" in reply["error"]


def test_the_program_takes_it_by_name(
    cpp_build: CppBuild,
    bundle: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    command: list[Any] = [
        cpp_build.generate, bundle, "--prompt", "a", "--set", "tint=7", "--steps", 1,
        "--out", tmp_path / "x.png",
    ]  # fmt: skip
    run = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert "tint" in run.stderr
    assert not (tmp_path / "x.png").exists()


def test_the_manifest_says_where_they_come_from(bundle: Path) -> None:  # noqa: F811
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    origins = [entry["from"] for entry in manifest["graphs"]["gated"]["inputs"]]
    assert {"parameter": "tint"} in origins
    assert {"image": "picture", "range": [-1.0, 1.0], "layout": "BHWC"} in origins
