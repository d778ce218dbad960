"""The tensors of a served model: what its configuration declares and its code reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tgate_export.bundle.manifest import Manifest
from tgate_export.runtime.plan import NEGATIVE

TritonType = Literal["STRING", "INT32", "UINT64", "FP16", "FP32", "BOOL", "UINT8", "INT64"]
Format = Literal["raw", "png", "base64", "latents"]
FORMATS: tuple[Format, ...] = ("raw", "png", "base64", "latents")
DEFAULT_FORMAT: Format = "base64"  # HTTP's JSON would write three numbers a pixel of "raw"
_TYPES: dict[str, TritonType] = {"float32": "FP32", "float16": "FP16", "int64": "INT64"}


@dataclass(frozen=True)
class Port:
    """An input or output; -1 is a dimension that is free."""

    name: str
    type: TritonType
    dims: tuple[int, ...] = (1,)


# Inputs of one value, and the argument of `TGatePipeline.__call__` that each is.
SCALARS: dict[str, tuple[TritonType, str]] = {
    "steps": ("INT32", "num_inference_steps"),
    "gate_step": ("INT32", "gate_step"),
    "sp_interval": ("INT32", "sp_interval"),
    "fi_interval": ("INT32", "fi_interval"),
    "warm_up": ("INT32", "warm_up"),
    "guidance_rescale": ("FP32", "guidance_rescale"),
    "clip_skip": ("INT32", "clip_skip"),
    "scheduler": ("STRING", "scheduler"),
    "seed": ("UINT64", "seed"),
    "num_images": ("INT32", "num_images_per_prompt"),
    "width": ("INT32", "width"),
    "height": ("INT32", "height"),
}

# Inputs that are one value, whatever the number of images.
SINGLE = {*SCALARS, "deadline", "format", "progress", "preview"}


def inputs(manifest: Manifest) -> list[Port]:
    """Return what a request may hold; everything is optional, but there must be something to draw.

    `prompt`, `negative_prompt` and `guidance_scale` are one for all images, or one each.
    """
    return [
        Port("prompt", "STRING", (-1,)),
        Port("negative_prompt", "STRING", (-1,)),
        Port("guidance_scale", "FP32", (-1,)),
        *(Port(name, kind) for name, (kind, _) in SCALARS.items()),
        Port("latents", "FP32", (-1, manifest.latents.channels, -1, -1)),
        *embeddings(manifest),
        Port("deadline", "FP32"),
        Port("format", "STRING"),
        Port("progress", "BOOL"),
        Port("preview", "BOOL"),
    ]


def embeddings(manifest: Manifest) -> list[Port]:
    """Return the inputs that stand for prompts, by the names of the text encoder's outputs."""
    ports = [
        Port(tensor.name, _TYPES[tensor.dtype], (-1, *(int(dim) for dim in tensor.shape[1:])))
        for tensor in manifest.graph("text_encoder").outputs
    ]
    if manifest.guidance != "classifier-free":
        return ports
    return [*ports, *(Port(NEGATIVE + port.name, port.type, port.dims) for port in ports)]


def outputs(manifest: Manifest) -> list[Port]:
    """Return what responses hold: the first four the last one, the others those of progress."""
    return [
        Port("images", "UINT8", (-1, -1, -1, 3)),
        Port("png", "STRING", (-1,)),
        Port("seed", "UINT64"),
        Port("timings", "STRING"),
        Port("latents", "FP32", (-1, manifest.latents.channels, -1, -1)),
        Port("image", "INT32"),
        Port("step", "INT32"),
        Port("evaluations", "INT32"),
        Port("phase", "STRING"),
    ]
