"""The tensors of a served model: what its configuration declares and its code reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tgate_export.bundle.manifest import Manifest
from tgate_export.parameters import Parameter, Type, short_name
from tgate_export.runtime.buffers import NEGATIVE

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


# Of every run, beside the bundle's parameters: an input, and the argument of
# `TGatePipeline.__call__` that it is.
_RUN: dict[str, tuple[TritonType, str]] = {
    "seed": ("UINT64", "seed"),
    "num_images": ("INT32", "num_images_per_prompt"),
    "width": ("INT32", "width"),
    "height": ("INT32", "height"),
}
_SERVED: dict[str, TritonType] = {
    "deadline": "FP32", "format": "STRING", "progress": "BOOL", "preview": "BOOL",
}  # fmt: skip
_PARAMETERS: dict[Type, TritonType] = {
    "integer": "INT32", "number": "FP32", "choice": "STRING",
}  # fmt: skip


def arguments(manifest: Manifest) -> dict[str, str]:
    """Return the argument of `TGatePipeline.__call__` that an input is, by the input's name."""
    run = {name: argument for name, (_, argument) in _RUN.items()}
    return {short_name(name): name for name in manifest.parameters} | run


def single(manifest: Manifest) -> set[str]:
    """Return the inputs that are one value, whatever the number of images."""
    per_call = {
        short_name(name)
        for name, entry in manifest.parameters.items()
        if entry.per == "call" and entry.type != "pair"
    }
    return per_call | _RUN.keys() | _SERVED.keys()


def inputs(manifest: Manifest) -> list[Port]:
    """Return what a request may hold; everything is optional, but there must be something to make.

    `prompt`, `negative_prompt` and what each prompt may have its own of are one for all images, or
    one each.
    """
    return [
        Port("prompt", "STRING", (-1,)),
        Port("negative_prompt", "STRING", (-1,)),
        *(_port(short_name(name), entry) for name, entry in manifest.parameters.items()),
        *(Port(name, kind) for name, (kind, _) in _RUN.items()),
        Port("latents", "FP32", (-1, manifest.latents.channels, -1, -1)),
        *embeddings(manifest),
        *(Port(name, kind) for name, kind in _SERVED.items()),
    ]


def _port(name: str, entry: Parameter) -> Port:
    if entry.type == "image":
        return Port(name, "UINT8", (-1, -1, -1, 3))
    if entry.type == "pair":
        return Port(name, "INT32", (2,))
    return Port(name, _PARAMETERS[entry.type], (-1,) if entry.per == "prompt" else (1,))


def embeddings(manifest: Manifest) -> list[Port]:
    """Return the inputs that stand for prompts, by the names of the text encoder's outputs."""
    ports = []
    for tensor in manifest.graph(manifest.prompt_encoder).outputs:
        row = [int(dim) for dim in tensor.shape[1:]]
        if manifest.chunks.get(tensor.name, 1) > 1:
            row[0] = -1
        ports.append(Port(tensor.name, _TYPES[tensor.dtype], (-1, *row)))
    if not manifest.takes_negative:
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
