"""The files of a pipeline, with weights that are valid files of no model."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def safetensors(tensors: dict[str, int], dtype: str = "F32") -> bytes:
    """A file of tensors of the given sizes in bytes, a multiple of 4."""
    header: dict[str, Any] = {}
    end = 0
    for name, size in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size // 4], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def save_files(folder: Path) -> None:
    """Save what a Stable Diffusion pipeline consists of."""
    write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline"})
    write_json(folder / "scheduler" / "scheduler_config.json", {})
    write_json(folder / "tokenizer" / "tokenizer.json", {})
    unet = {"in_channels": 4, "sample_size": 8, "block_out_channels": [32, 64]}
    write_json(folder / "unet" / "config.json", unet)
    vae = {"latent_channels": 4, "block_out_channels": [16, 32, 32]}
    write_json(folder / "vae" / "config.json", vae)
    write_json(folder / "text_encoder" / "config.json", {})
    for component, name in WEIGHTS.items():
        (folder / component / name).write_bytes(safetensors({"weight": 8}))
