"""The OpenVINO backend of the C++ library draws what the Python runtime's draws."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import openvino
import pytest

from tests.embed.driver import CppBuild, Driver
from tests.embed.test_cpp_run import PROMPTS, assert_same, python_run, texts
from tgate_export import TGatePipeline
from tgate_export.runtime.backends.base import BackendError

OPTIONS = {"num_inference_steps": 12, "gate_step": 5, "seed": 3}


def test_pictures_are_those_of_the_python_runtime(driver: Driver, shapes_bundle: Path) -> None:
    """Compiled for two images first, then for any number of them."""
    pipeline = TGatePipeline.from_bundle(shapes_bundle, "openvino")
    for prompts in (PROMPTS[:2], PROMPTS[:3], PROMPTS[3:4], PROMPTS[:2]):
        found = driver(
            "run", bundle=str(shapes_bundle), backend="openvino",
            request={"prompt": texts(*prompts), **OPTIONS},
        )  # fmt: skip
        assert_same(found, python_run(pipeline, prompts, **OPTIONS))


def test_bf16_where_the_cpu_has_it(driver: Driver, shapes_bundle: Path) -> None:
    arguments = {
        "bundle": str(shapes_bundle), "backend": "openvino:bf16",
        "request": {"prompt": texts(PROMPTS[0]), **OPTIONS},
    }  # fmt: skip
    if bf16_works():
        pipeline = TGatePipeline.from_bundle(shapes_bundle, "openvino:bf16")
        assert_same(driver("run", **arguments), python_run(pipeline, PROMPTS[:1], **OPTIONS))
    else:
        with pytest.raises(BackendError) as caught:
            TGatePipeline.from_bundle(shapes_bundle, "openvino:bf16")
        assert caught.value.reason in driver.error("run", **arguments)


def bf16_works() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_auto_prefers_it(cpp_build: CppBuild, tiny_bundle: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [cpp_build.generate, tiny_bundle, "--prompt", "x", "--steps", "2", "--json", "--out",
         tmp_path / "x.png"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["backend"] == "openvino"
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_graph_that_openvino_cannot_read(driver: Driver, tiny_bundle_copy: Path) -> None:
    """With hashes compared it would be named sooner."""
    graph = tiny_bundle_copy / "graphs" / "full.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    for _ in range(2):  # and again: what failed to load is not taken for loaded
        text = driver.error(
            "run", bundle=str(tiny_bundle_copy), backend="openvino", check_hashes=False,
            request={"prompt": texts("x"), "num_inference_steps": 2},
        )  # fmt: skip
        assert text.startswith("openvino cannot load graph 'full': ")
