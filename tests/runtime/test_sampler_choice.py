"""Samplers that a bundle lacks: by any name, compiled by another process, or refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.test_request import manifest, request
from tests.support.manifest import VALID
from tgate_export import TGatePipeline
from tgate_export.bundle.integrity import open_bundle
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_names import SCHEDULER_CONFIG
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.common.hints import in_python, worded
from tgate_export.runtime import compiled_samplers
from tgate_export.runtime.compiled_samplers import compile_table
from tgate_export.runtime.sampler_choice import require_table
from tgate_export.samplers.tables import compile_sampler


def open_to_more() -> Manifest:
    file = {"sha256": "0" * 64, "bytes": 2}
    return manifest(files=VALID["files"] | {SCHEDULER_CONFIG: file})


@pytest.mark.parametrize(
    ("text", "scheduler"),
    [
        ("ddim", "ddim"), ("DDIM", "ddim"), ("Heun", "heun"), ("heun-karras", "heun-karras"),
        ("DPM++ 2M SDE", "dpm++2m-sde-exponential"), ("ddim-zsnr-trailing", "ddim-trailing-zsnr"),
    ],
)  # fmt: skip
def test_any_name(text: str, scheduler: str) -> None:
    assert request(of=open_to_more(), scheduler=text).scheduler == scheduler
    assert request(of=open_to_more(), scheduler=text, num_inference_steps=100).first_step == 0
    with pytest.raises(InvalidRequestError, match="steps must be 1 to 100, got 101"):
        request(of=open_to_more(), scheduler=scheduler, num_inference_steps=101)


def test_names_that_a_bundle_without_a_configuration_has_not() -> None:
    assert request(scheduler="DDIM").scheduler == "ddim"
    for text in ("Heun", "heun", "none", "", 3, ["ddim"]):
        with pytest.raises(
            InvalidRequestError, match=r"unknown scheduler .*: this bundle has ddim"
        ):
            request(scheduler=text)
    with pytest.raises(InvalidRequestError, match="unknown scheduler 'none'"):
        request(of=open_to_more(), scheduler="none")


def test_a_list_says_how_many_steps() -> None:
    listed = "euler@timesteps=900,500,100"
    asked = request(of=open_to_more(), scheduler=listed)
    assert (asked.scheduler, asked.num_inference_steps) == (listed, 3)
    assert asked.gate_step <= 3
    assert request(of=open_to_more(), scheduler="heun-ays").num_inference_steps == 10
    with pytest.raises(InvalidRequestError, match="has 3 steps, not 4") as caught:
        request(of=open_to_more(), scheduler=listed, num_inference_steps=4)
    assert caught.value.field == "num_inference_steps"


def test_servers_compile_nothing() -> None:
    for name in ("heun", "euler@timesteps=900,500,100"):
        with pytest.raises(InvalidRequestError, match="bundle was built without ") as caught:
            require_table(open_to_more(), request(of=open_to_more(), scheduler=name).scheduler)
        assert caught.value.field == "scheduler"
    require_table(open_to_more(), "ddim")


def test_another_process_compiles_it_once(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle(tiny_bundle)
    config = json.loads(bundle.file(SCHEDULER_CONFIG).read_text())
    expected = compile_sampler("heun", config, (4,)).steps[4]
    for _ in range(2):
        found = compile_table(bundle, "heun", 4, starts=False)
        assert list(found.steps) == [4]
        assert found.steps[4].weights.tobytes() == expected.weights.tobytes()
        assert found.steps[4].step_of_evaluation == expected.step_of_evaluation
    (kept,) = (tmp_path / "cache" / "samplers").iterdir()
    assert kept.suffix == ".json"
    with pytest.raises(InvalidRequestError, match=r"'lcm' .* runs with no step count") as caught:
        compile_table(bundle, "lcm", 77, starts=False)
    assert "\n" not in str(caught.value)


def test_without_diffusers(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pipeline = TGatePipeline.from_bundle(tiny_bundle, "onnxruntime:cpu")
    with pytest.raises(
        InvalidRequestError, match="no table of heun-karras, and diffusers"
    ) as caught:
        pipeline("x", scheduler="heun-karras", num_inference_steps=2)
    hint = worded(caught.value.hint, in_python)
    assert hint.startswith("where it is: build_bundle(model=")
    assert "samplers='heun-karras'" in hint
    with pytest.raises(InvalidRequestError, match="no table of euler@") as caught:
        pipeline("x", scheduler="euler@timesteps=3,2")
    assert not caught.value.hint
    assert np.asarray(pipeline("x", num_inference_steps=2, output_type="np").images).any()


@pytest.mark.parametrize(
    ("program", "reason"),
    [("tgate_export.no.such", "No module named"), ("json.tool", "compiling heun failed")],
)
def test_a_process_that_fails(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, program: str, reason: str
) -> None:
    monkeypatch.setattr(compiled_samplers, "_PROGRAM", program)
    with pytest.raises(TGateError, match=reason):
        compile_table(open_bundle(tiny_bundle), "heun", 3, starts=False)


@pytest.mark.parametrize("text", ["[]", "{", '{"num_train_timesteps": 1000000000}', "\xff"])
def test_a_configuration_that_is_none(tiny_bundle_copy: Path, text: str) -> None:
    bundle = open_bundle(tiny_bundle_copy)
    bundle.file(SCHEDULER_CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(BundleError) as caught:
        compile_table(bundle, "heun", 3, starts=False)
    assert "\n" not in str(caught.value)
