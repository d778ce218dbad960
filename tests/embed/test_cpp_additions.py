"""The made-up scalar and picture of `tests.e2e.test_additions`, and one of the encoder, in C++."""

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
from tests.support.cpp_driver import CppBuild, Driver, assert_alike
from tgate_export import TGatePipeline
from tgate_export.common.errors import InvalidRequestError


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


@pytest.fixture
def of_encoder(tiny_bundle_copy: Path) -> Path:
    """A bundle whose text encoder takes `skipped`, by default 1, and no `clip_skip`."""
    path = tiny_bundle_copy / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    table, inputs = manifest["parameters"], manifest["graphs"]["text_encoder"]["inputs"]
    table["skipped"] = table.pop("clip_skip") | {"default": 1}
    (entry,) = (entry for entry in inputs if entry["from"].get("parameter") == "clip_skip")
    entry["from"]["parameter"] = "skipped"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return tiny_bundle_copy


def test_the_encoder_reads_it(driver: Driver, of_encoder: Path, tiny_bundle: Path) -> None:
    asked = {"prompt": texts("a"), **RUN}
    runs = [
        driver("run", bundle=str(folder), request=asked | {"parameters": parameters})
        for folder, parameters in (
            (of_encoder, {}), (tiny_bundle, {"clip_skip": 1}),
            (of_encoder, {"skipped": 0}), (tiny_bundle, {}),
        )
    ]  # fmt: skip
    skipped, expected, whole, usual = (array(run["latents"][0]) for run in runs)
    np.testing.assert_array_equal(skipped, expected)
    np.testing.assert_array_equal(whole, usual)
    assert np.abs(skipped - whole).max() > 1e-3


def test_it_is_refused_beside_embeddings(driver: Driver, of_encoder: Path) -> None:
    embeds = np.zeros((1, 77, 32), np.float32)
    python = TGatePipeline.from_bundle(of_encoder, "onnxruntime:cpu")
    given = {"shape": embeds.shape, "data": embeds.ravel().tolist()}
    asked = {"prompt": {"embeds": {"prompt_embeds": given}}, **RUN}
    with pytest.raises(InvalidRequestError, match="skipped 1 has no effect") as caught:
        python(prompt_embeds=embeds, parameters={"skipped": 1}, **RUN)
    refused = driver.refusal(
        "run", bundle=str(of_encoder), request=asked | {"parameters": {"skipped": 1}}
    )
    assert_alike(refused, caught.value)
    assert refused.field == "skipped"
    # Neither is a 0, nor the bundle's default, of which the call says nothing.
    for parameters in ({"skipped": 0}, {}):
        found = driver("run", bundle=str(of_encoder), request=asked | {"parameters": parameters})
        expected = python(
            prompt_embeds=embeds, parameters=parameters, output_type="latent", **RUN
        ).images
        np.testing.assert_allclose(array(found["latents"][0]), expected, atol=1e-4)
