"""The OpenVINO backend of the C++ library draws what the Python runtime's draws."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest

from tests.embed.test_cpp_run import PROMPTS, array, assert_same, python_run, texts
from tests.support.cpp_driver import CppBuild, Driver
from tests.support.hostile import relist
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


def test_weights_of_large_denoisers_are_packed_once(driver: Driver, tiny_bundle: Path) -> None:
    """Ungated needs one graph, gated another; the third has another batch."""
    calls = [(["a fox"], 4), (["a fox"], 2), (["a fox", "an owl"], 2), (["a fox"], 2)]
    options = {"num_inference_steps": 4, "seed": 3}
    found = {
        limit: [
            driver(
                "run", bundle=str(tiny_bundle), backend="openvino", join_weights_above=limit,
                request={"prompt": texts(*prompts), "gate_step": gate, **options},
            )
            for prompts, gate in calls
        ]
        for limit in (1 << 26, 0)
    }  # fmt: skip
    different = []
    for apart, together in zip(*found.values(), strict=True):
        assert not together["warnings"]  # such as that they could not be joined
        expected, latents = (array(reply["latents"][-1]) for reply in (apart, together))
        # Its own way of group norms, in other kernels: fp32 rounding, which four steps carry on.
        difference = np.abs(latents - expected).max() / np.abs(expected).max()
        assert difference <= 1e-5
        different.append(difference > 0)
    assert any(different), "nothing was joined"


def test_bf16_where_the_cpu_has_it(driver: Driver, shapes_bundle: Path) -> None:
    """To the last bits: the same kernels of the same models, in as many threads.

    With other threads sums are taken in another order. What that does to a last bit of fp32 can
    turn a rounding to bf16, 2^16 times as much, and pictures are as far from each other as from
    those of fp32: 9e-3 here.
    """
    arguments = {
        "bundle": str(shapes_bundle), "backend": "openvino:bf16", "threads": 0,  # as many as Python
        "request": {"prompt": texts(PROMPTS[0]), **OPTIONS},
    }  # fmt: skip
    if bf16_works():
        pipeline = TGatePipeline.from_bundle(shapes_bundle, "openvino:bf16")
        assert_same(driver("run", **arguments), python_run(pipeline, PROMPTS[:1], **OPTIONS))
    else:
        with pytest.raises(BackendError) as caught:
            TGatePipeline.from_bundle(shapes_bundle, "openvino:bf16")
        assert caught.value.message in driver.error("run", **arguments)


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
    graph = tiny_bundle_copy / "graphs" / "full.onnx"
    changed = onnx.load(graph, load_external_data=False)
    changed.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(changed, graph)
    relist(tiny_bundle_copy)
    for _ in range(2):  # and again: what failed to load is not taken for loaded
        text = driver.error(
            "run", bundle=str(tiny_bundle_copy), backend="openvino",
            request={"prompt": texts("x"), "num_inference_steps": 2},
        )  # fmt: skip
        assert text.startswith("openvino cannot load graph 'full': ")
