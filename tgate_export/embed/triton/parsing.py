"""From a request's tensors to what the batcher takes; nothing in a request can name a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.common.errors import InvalidRequestError
from tgate_export.embed.triton import interface
from tgate_export.embed.triton.interface import DEFAULT_FORMAT, FORMATS, Format, single
from tgate_export.runtime.buffers import NEGATIVE
from tgate_export.runtime.request import Request, make_request
from tgate_export.runtime.sampler_choice import require_table
from tgate_export.runtime.serving import read_text

MAX_TEXTS_BYTES = 131072  # of a request, so that others need not wait while it is tokenized


@dataclass(frozen=True)
class Call:
    """One checked request.

    Attributes:
        request: what to generate.
        format: of the result.
        deadline: seconds from now, if it has one.
        progress: whether every step is to be told,
        preview: and with its latents.
    """

    request: Request
    format: Format
    deadline: float | None
    progress: bool
    preview: bool


def parse(manifest: Manifest, tensors: Mapping[str, np.ndarray], max_images: int) -> Call:
    """Check a request's inputs, by name; see `interface.inputs`.

    Args:
        manifest: the bundle's.
        tensors: the inputs.
        max_images: the most of one request.

    Raises:
        InvalidRequestError: names the input and what it may be.
    """
    one = single(manifest)
    for name, value in tensors.items():  # before anything is made of so many
        _check_count(name, value, max_images, single=name in one)
    found = {name: _plain(name, value) for name, value in tensors.items()}
    texts = [text for value in found.values() if value.dtype == np.object_ for text in value]
    if (size := sum(len(text.encode()) for text in texts)) > MAX_TEXTS_BYTES:
        raise InvalidRequestError(
            f"the texts of a request have {size} bytes, at most {MAX_TEXTS_BYTES} are read"
        )
    arguments: dict[str, Any] = {
        argument: _value(found[name], single=name in one)
        for name, argument in interface.arguments(manifest).items()
        if name in found
    }
    names = [tensor.name for tensor in manifest.graph(manifest.prompt_encoder).outputs]
    for prefix in ("", NEGATIVE):
        given = {name: found[prefix + name] for name in names if prefix + name in found}
        if given:
            arguments[f"{prefix}prompt_embeds"] = given
    if "negative_prompt" in found:
        arguments["negative_prompt"] = _value(found["negative_prompt"], single=False)
    if "latents" in found:
        arguments["latents"] = found["latents"]
    format_ = _single(found["format"]) if "format" in found else DEFAULT_FORMAT
    if format_ not in FORMATS:
        raise InvalidRequestError(f"unknown format {format_!r}: choose one of {', '.join(FORMATS)}")
    prompts = found["prompt"].tolist() if "prompt" in found else None
    count = len(prompts or ()) or max((len(value) for value in found.values()), default=0)
    images = count * max(1, int(arguments.get("num_images_per_prompt", 1)))
    if images > max_images:
        raise InvalidRequestError(f"{images} images in a request, at most {max_images} are served")
    output_type = "latent" if format_ == "latents" else "np"
    request = make_request(manifest, prompts, output_type=output_type, **arguments)
    require_table(manifest, request.scheduler)
    return Call(
        request,
        format_,
        _single(found["deadline"]) if "deadline" in found else None,
        bool(_single(found["progress"])) if "progress" in found else False,
        bool(_single(found["preview"])) if "preview" in found else False,
    )


def check_fields(known: Iterable[str], fields: Iterable[str]) -> None:
    """Refuse what a request has beside its inputs.

    Raises:
        InvalidRequestError: names the first, and what there is.
    """
    if unknown := sorted(fields):
        raise InvalidRequestError(f"unknown field {unknown[0]!r}: there are {', '.join(known)}")


def _check_count(name: str, value: np.ndarray, most: int, *, single: bool) -> None:
    if single:
        if value.size != 1:
            raise InvalidRequestError(f"{name} must be one value, got {value.size}")
    elif len(value) > most:
        raise InvalidRequestError(
            f"{len(value)} images in a request, at most {most} are served"
            if name == "prompt"
            else f"{name} has {len(value)} entries, for at most {most} images"
        )


def _plain(name: str, value: np.ndarray) -> np.ndarray:
    """Return a tensor as it is, or texts of one as `str`."""
    if value.dtype != np.object_:
        return value
    texts = (entry if isinstance(entry, bytes) else str(entry) for entry in value.reshape(-1))
    return np.array([read_text(name, text) for text in texts], dtype=object)


def _value(value: np.ndarray, *, single: bool) -> Any:
    """Return an input as Python has it: a value, or where there may be several a list."""
    if single:
        return _single(value)
    if value.ndim > 1:  # pictures
        return list(value)
    values = value.tolist()
    return values[0] if len(values) == 1 else values


def _single(value: np.ndarray) -> Any:
    return value.reshape(-1)[0].item() if value.dtype != np.object_ else value.reshape(-1)[0]
