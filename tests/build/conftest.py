"""LoRA files that several tests of builds share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import fused, loras
from tests.support.loras import ATTENTION, MOST


@pytest.fixture(scope="module")
def unet_file(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/build/test_lora.py builds with: the graphs may be in the tests' cache."""
    made = loras.change(fused.pipeline(tiny_pipeline_dir).unet, MOST)
    file = tmp_path_factory.mktemp("lora") / "fox.safetensors"
    return loras.save(loras.kohya("lora_unet_", made, 2.0), file)


@pytest.fixture(scope="module")
def text_file(tiny_pipeline_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the text encoder, and of a few layers of the UNet."""
    made = fused.changes(fused.pipeline(tiny_pipeline_dir), ATTENTION, rank=2, seed=1)
    made["unet"] = dict(list(made["unet"].items())[:3])
    return fused.save(made, tmp_path_factory.mktemp("lora") / "text.safetensors")
