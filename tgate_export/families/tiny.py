"""Very small random pipelines of each family's true architectures, for tests (torch).

A family's `tiny.py` has a `PIPELINES`, found by scanning; nothing of the package imports one.

Every bias and norm weight is random: with their usual zeros and ones, tensors that are mixed up
would go unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from tgate_export.bundle.manifest import Guidance
from tgate_export.families.names import NAMED_MODELS
from tgate_export.families.random_tokenizers import byte_tokenizer
from tgate_export.families.registry import FAMILIES, family_folder

SEED = 20240414
VOCABULARY, TOKENS = 514, 77


@dataclass(frozen=True)
class TinyPipeline:
    """One architecture of a family; its images have 16 x 16 pixels.

    Attributes:
        name: what tests call it.
        title: what people call the published models of its architecture.
        make: makes the diffusers pipeline, with weights of torch's random numbers.
        guidance: how it is built.
        video: it makes videos of an image, and not images of a text.
        refiner: its runs begin with an image or with latents.
    """

    name: str
    title: str
    make: Callable[[], Any]
    guidance: Guidance = "classifier-free"
    video: bool = False
    refiner: bool = False

    def save(self, folder: Path) -> None:
        """Save it as a diffusers folder, the same whenever it is called."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            pipeline = self.make()
        pipeline.save_pretrained(folder, safe_serialization=True)


def tiny_pipelines() -> dict[str, tuple[TinyPipeline, ...]]:
    """Import every family's: the family's name -> its architectures, the one to begin with first.

    Raises:
        ModuleNotFoundError: a family's folder has no `tiny.py`.
    """
    return {
        name: import_module(f"{__package__}.{family_folder(family).name}.tiny").PIPELINES
        for name, family in FAMILIES.items()
    }


def randomized(*modules: Any) -> Any:
    """Make biases and the weights of norms random in place; return the first of the modules."""
    with torch.no_grad():
        for module in modules:
            for name, parameter in module.named_parameters():
                if parameter.ndim == 1:
                    centre = 1.0 if name.endswith("weight") else 0.0
                    parameter.copy_(centre + 0.1 * torch.randn_like(parameter))
    return modules[0]


def scheduler_config(model: str) -> dict[str, Any]:
    """Return the scheduler's configuration of a named model."""
    path = NAMED_MODELS[model].directory / "scheduler" / "scheduler_config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def small_vae(**config: Any) -> Any:
    """Return an autoencoder of images, whose latents have half their width and height."""
    return AutoencoderKL(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
        **config,
    )


def small_unet(**config: Any) -> Any:
    """Return a UNet with two levels of 32 and 64 channels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        **config,
    )


def small_clip(cls: Any, width: int, **changes: Any) -> Any:
    """Return a CLIP text encoder for `clip_tokenizer`."""
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    return cls(CLIPTextConfig(**(config | changes)))


def clip_tokenizer(**special: str) -> Any:
    """Return a tokenizer for `small_clip`; see `byte_tokenizer`."""
    return byte_tokenizer(VOCABULARY, TOKENS, **special)
