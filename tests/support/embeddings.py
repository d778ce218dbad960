"""Textual inversions of random vectors, the pipeline that loads them, and a bundle with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.support import tiny
from tests.support.checkpoints import save
from tests.support.once import made_once
from tgate_export.build.build import build_bundle

PROMPTS = [
    "a <cat> beside a fox, oil", "FOX<cat><cat>", "<Cat> and <cat>_1", "a dog", "<cat> " * 30,
]  # fmt: skip


def vectors(count: int, width: int, seed: int) -> torch.Tensor:
    """Return vectors as large as a tiny text encoder's own."""
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) / 10


@dataclass(frozen=True)
class Embedded:
    """A bundle with two textual inversions, and what it was built from.

    Attributes:
        bundle: its folder.
        cat: a file of three vectors that names its token `<cat>`.
        fox: a file of one vector in A1111's layout.
    """

    bundle: Path
    cat: Path
    fox: Path

    def pipeline(self, directory: Path) -> Any:
        """Load the pipeline's folder with diffusers, and both files."""
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_textual_inversion(self.cat.parent, weight_name=self.cat.name)
        pipe.load_textual_inversion(self.fox.parent, weight_name=self.fox.name, token="fox")
        return pipe


def embedded(factory: pytest.TempPathFactory, pipeline: Path) -> Embedded:
    """Build the tiny Stable Diffusion of a folder with them, once; not to be changed."""

    def make(folder: Path) -> None:
        folder.mkdir()
        save({"<cat>": vectors(3, 32, 1)}, folder / "learned_embeds.safetensors")
        save({"emb_params": vectors(1, 32, 2)}, folder / "fox.safetensors")
        given = [(str(folder / f"{name}.safetensors"), None) for name in ("learned_embeds", "fox")]
        with tiny.only_samplers("ddim"):
            build_bundle(str(pipeline), embeddings=given, out=folder / "bundle")

    made = made_once(factory, "bundles/embedding", make)
    return Embedded(made / "bundle", made / "learned_embeds.safetensors", made / "fox.safetensors")
