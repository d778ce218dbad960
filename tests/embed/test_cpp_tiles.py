"""The C++ library decodes in tiles as the Python runtime does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundle.test_tiles import FAULTS, with_tiles
from tests.embed.test_cpp_bundle import refuse_alike
from tests.embed.test_cpp_run import python_run
from tests.support.cpp_driver import Driver
from tests.support.tiled import HEIGHT, WIDTH, tiled_bundle
from tgate_export import TGatePipeline


@pytest.mark.builds
def test_decoded_in_tiles(
    driver: Driver,
    tiny_pipeline_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    plain_sessions: None,
) -> None:
    bundle = tiled_bundle(tmp_path_factory, tiny_pipeline_dir)
    prompts = ["a fox", "a red circle"]
    call: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "scheduler": "ddim"}
    expected = python_run(TGatePipeline.from_bundle(bundle, "onnxruntime:cpu"), prompts, **call)
    found = driver("run", bundle=str(bundle), request={"prompt": {"texts": prompts}, **call})
    assert len(found["images"]) == 2
    for mine, theirs in zip(found["images"], expected["images"], strict=True):
        assert theirs.shape == (HEIGHT, WIDTH, 3)
        difference = np.array(mine, dtype=int).reshape(theirs.shape) - theirs
        assert np.abs(difference).max() <= 1


def test_tiles_are_read(driver: Driver) -> None:
    text = json.dumps(with_tiles("vae_decoder", {"size": 16, "overlap": 4}))
    assert driver("manifest", text=text, where="x") == {"ok": True}


@pytest.mark.parametrize(("graph", "tiles"), FAULTS)
def test_tiles_that_are_none(driver: Driver, graph: str, tiles: Any) -> None:
    refuse_alike(driver, json.dumps(with_tiles(graph, tiles)))
