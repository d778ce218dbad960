"""Picture and video files that say how they were made.

A PNG has two texts: `parameters`, in the format of AUTOMATIC1111's web UI, which many programs
read, and `tgate-export`, the whole of it as JSON. JPEG and WEBP have the first in EXIF's
UserComment, a GIF as its comment, as that web UI writes them. Pixels are as without.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tgate_export import __version__
from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_names import a1111_name
from tgate_export.parameters import UPSCALERS
from tgate_export.runtime.parameter_values import executed_steps
from tgate_export.runtime.picture_record import RECORD
from tgate_export.runtime.request import Request

if TYPE_CHECKING:
    from PIL import Image

# Parameters that have a place of their own in the text.
_PLACED = {
    "num_inference_steps", "scheduler", "guidance_scale", "clip_skip", "strength", "gate_step",
}  # fmt: skip
_MOST_OF_JPEG = 65533  # bytes of EXIF


def encode_picture(
    image: Image.Image,
    kind: str,
    manifest: Manifest,
    request: Request,
    index: int,
    *,
    quality: int | None = None,
) -> bytes:
    """Return a picture as a file that says how it was made. The same picture gives the same bytes.

    Args:
        image: the picture, in RGB.
        kind: "PNG", "JPEG" or "WEBP".
        manifest: of the bundle that made it.
        request: what was asked for.
        index: which of the request's images it is.
        quality: of JPEG and WEBP, 0 to 100; Pillow's default (75, 80) when not given.

    Raises:
        OSError: Pillow cannot encode it.
    """
    options = {} if quality is None else {"quality": quality}
    file = io.BytesIO()
    image.save(file, kind, **options, **_texts(kind, manifest, request, index))
    return file.getvalue()


def encode_video(
    frames: Sequence[Image.Image], kind: str, manifest: Manifest, request: Request, index: int
) -> bytes:
    """Return a video as a file that repeats for ever, and says how it was made.

    Args:
        frames: pictures in RGB, shown for 1 / `fps` seconds each.
        kind: "GIF", "WEBP", or "PNG" for an animated PNG.
        manifest: of the bundle that made it.
        request: what was asked for.
        index: which of the request's videos it is.

    Raises:
        OSError: Pillow cannot encode it.
    """
    first, *rest = frames
    file = io.BytesIO()
    first.save(
        file, kind, save_all=True, append_images=rest, loop=0,
        duration=round(1000 / request.value("fps")), **_texts(kind, manifest, request, index),
    )  # fmt: skip
    return file.getvalue()


def made_with(manifest: Manifest, request: Request, index: int) -> dict[str, Any]:
    """Return how one image of a request was made, as JSON data.

    `left_out` names what the call brought that is not in here: pictures, and arrays.

    Args:
        manifest: of the bundle that made it.
        request: what was asked for.
        index: which of the request's images it is.
    """
    texts = request.prompts if isinstance(request.prompts, tuple) else None
    negatives = request.negative_prompts if isinstance(request.negative_prompts, tuple) else None
    in_part = request.denoising_start is not None or request.denoising_end is not None
    arrays = {
        "prompt_embeds": manifest.takes_prompt and texts is None,
        "negative_prompt_embeds": isinstance(request.negative_prompts, dict),
        "latents": request.latents is not None or (in_part and request.refined is None),
    }
    of_latents = ["image"] if request.image_latents is not None else []
    pictures = [*sorted(request.pictures), *of_latents]
    return {
        "version": __version__,
        "model": manifest.name,
        "family": manifest.family,
        "prompt": texts and texts[index],
        "negative_prompt": negatives and negatives[index],
        "seed": _seed(request, index),
        "width": request.width,
        "height": request.height,
        "parameters": {name: each[index] for name, each in request.values.items()},
        **({} if request.hires is None else {"hires": request.hires.as_dict()}),
        **({} if request.refined is None else {"refiner": asdict(request.refined)}),
        "left_out": [*pictures, *(name for name in arrays if arrays[name])],
    }


def parameters_text(manifest: Manifest, request: Request, index: int) -> str:
    """Return how one image of a request was made, in the format of AUTOMATIC1111's web UI.

    The prompt, a line for the negative prompt if there is one, and a line of NAME: VALUE. After the
    names that the web UI has come the gate step, and parameters that are not the bundle's default.
    Prompts are as they were given: of one with a line that begins as the negative prompt's does,
    readers take that for it; `made_with` is exact.

    Args:
        manifest: of the bundle that made it.
        request: what was asked for.
        index: which of the request's images it is.
    """
    made = made_with(manifest, request, index)
    values = made["parameters"]
    sampler, sigmas = a1111_name(request.scheduler)
    fields = {
        "Steps": request.num_inference_steps,
        "Sampler": sampler,
        "Schedule type": sigmas,
        "CFG scale": request.guidance_scales[index],
        "Seed": made["seed"],
        "Size": f"{request.width}x{request.height}",
        "Model": manifest.name,
        # They count the layer that is read: 1 is the last, none skipped.
        "Clip skip": 1 + values["clip_skip"] if values.get("clip_skip") else None,
        "Denoising strength": values.get("strength"),
        **of_hires(request),
        "Refiner": request.refined and request.refined.model,
        "Refiner switch at": request.refined and request.refined.start,
        "Gate step": request.gate_step,
    }
    for name, value in values.items():
        if name not in _PLACED and value != manifest.parameters[name].default:
            fields.setdefault(name.replace("_", " ").capitalize(), value)
    fields["Version"] = f"tgate-export {__version__}"
    last = ", ".join(f"{name}: {_plain(v)}" for name, v in fields.items() if v is not None)
    negative = made["negative_prompt"] and f"Negative prompt: {made['negative_prompt']}"
    return "\n".join(line for line in (made["prompt"], negative, last) if line)


def of_hires(request: Request) -> dict[str, Any]:
    """Return what A1111's web UI says of a second pass: its steps are those that are executed."""
    hires = request.hires
    if hires is None:
        return {}
    strength = hires.values["strength"]
    factors = hires.width / request.width, hires.height / request.height
    whole = factors[0] == factors[1]
    return {
        "Denoising strength": strength,
        "Hires upscale": f"{factors[0]:g}" if whole else None,
        "Hires resize": None if whole else f"{hires.width}x{hires.height}",
        "Hires steps": executed_steps(hires.values["num_inference_steps"], strength),
        "Hires upscaler": UPSCALERS[hires.upscaler],
    }


def _seed(request: Request, index: int) -> int:
    """Return the seed that makes the image alone."""
    return (request.seed + index) % 2**64


def _plain(value: Any) -> str:
    """Write a value so that a line of them can be read again."""
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    text = str(value).removesuffix(".0") if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(',:"\r\n') else text


def _texts(kind: str, manifest: Manifest, request: Request, index: int) -> dict[str, Any]:
    """Return the options with which Pillow saves a file that says how it was made."""
    text = parameters_text(manifest, request, index)
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()  # writes iTXt where tEXt, which is Latin-1, does not do
        chunks.add_text("parameters", text)
        chunks.add_text(RECORD, json.dumps(made_with(manifest, request, index)))
        return {"pnginfo": chunks}
    if kind == "GIF":
        return {"comment": text.encode()}
    exif = _exif(text)
    if kind == "JPEG" and len(exif) > _MOST_OF_JPEG:
        return {}  # there is no room for a text that long
    return {"exif": exif}


def _exif(comment: str) -> bytes:
    """Return EXIF data with a UserComment alone.

    Pillow would write it as bytes; it is of the type "undefined", and programs insist.
    """
    content = b"UNICODE\0" + comment.encode("utf-16-be")
    # Big-endian TIFF; a directory of one entry at 8, which points to another such one at 26.
    pointer = struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
    entry = struct.pack(">HHHIII", 1, 0x9286, 7, len(content), 44, 0)
    return b"Exif\0\0MM\0*" + struct.pack(">I", 8) + pointer + entry + content
