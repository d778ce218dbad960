"""Write the files that follow from others: after a parameter or a field of the manifest changed.

usage: python scripts/generated.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from tgate_export.bundle.manifest import Manifest
from tgate_export.parameters import PARAMETERS, Declared

PACKAGE = Path(__file__).resolve().parent.parent / "tgate_export"
SIGNATURE = PACKAGE / "runtime" / "signature.py"
SCHEMA = PACKAGE / "bundle" / "manifest.schema.json"

_HEAD = '''"""The call of a pipeline, which `scripts/generated.py` writes from what is declared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from tgate_export.runtime.pipeline import PipelineOutput
    from tgate_export.runtime.prompts import Embeds
    from tgate_export.runtime.step_info import StepInfo

class Generate(ABC):
    """What can be called as `TGatePipeline` is."""

    @abstractmethod
    def _generate(
        self, arguments: dict[str, Any], callback: Callable[[StepInfo], None] | None
    ) -> PipelineOutput:
        """Make what a call asks for; `arguments` are those of `make_request`."""

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Embeds | None = None,
        negative_prompt_embeds: Embeds | None = None,
'''
_ARGUMENTS = {
    "prompt": "one or more prompts.",
    "negative_prompt": "what to avoid; one for all prompts, or one each. Without one it is the "
    "empty text, or zero embeddings for a model that was trained so (SDXL).",
    "prompt_embeds": "instead of `prompt`, what the text encoder makes of it [B, T, D]; where it "
    "makes more than one tensor, a mapping from the name of each of its outputs to its array, "
    "such as SDXL's `prompt_embeds` and `text_embeds`. Arrays of numpy or tensors of torch, of any "
    "type and on any device.",
    "negative_prompt_embeds": "instead of `negative_prompt`, what the text encoder makes of it; "
    "one for all prompts, or one each.",
}
_OTHERS = {
    "seed": ("int | None", "None", "0 .. 2^64 - 1; random when not given."),
    "num_images_per_prompt": (
        "int", "1", "images of each prompt; image i of a call is that of seed + i.",
    ),
    "height": ("int | None", "None", "pixels; the bundle's default when not given."),
    "width": ("int | None", "None", "pixels; the bundle's default when not given."),
    "latents": (
        "np.ndarray | None", "None",
        "starting latents [B, C, h, w], of a video [B, F, C, h, w], of unit variance, instead of "
        "a seed.",
    ),
    "hires": (
        "float | str | None", "None",
        "make the picture small first, and then this many times as large, or in this size "
        '("WxH"), beginning with the small one enlarged (the hires fix).',
    ),
    "hires_strength": (
        "float | None", "None",
        "how much of the enlarged picture is generated anew, as `strength`; 0.7 when not given.",
    ),
    "hires_steps": (
        "int | None", "None",
        "steps of the second pass, as `num_inference_steps`, which it is when not given. The gate "
        "keeps its place among those that run.",
    ),
    "hires_upscaler": (
        "str | None", "None",
        'how it is enlarged: "latent" (bilinear; when not given), "latent-bicubic" or '
        '"latent-nearest" without decoding it, or "lanczos" in pixels, for a bundle built with '
        "image-to-image.",
    ),
    "denoising_end": (
        "float | None", "None",
        "end after this part of the run, 0 to 1, with latents that have noise left, for another "
        'model: with output_type="latent".',
    ),
    "denoising_start": (
        "float | None", "None",
        "begin after this part of the run with the latents `image` as they are, which another "
        "model ended with. The gate step counts the steps that run.",
    ),
    "output_type": ("str", '"pil"', '"pil", "np" or "latent".'),
    "parameters": (
        "Mapping[str, Any] | None", "None",
        "further ones of the bundle's `Manifest.parameters`, by name.",
    ),
    "callback_on_step_end": (
        "Callable[[StepInfo], None] | None", "None",
        "called after each denoiser evaluation; an exception ends the run. It cannot call this "
        "pipeline, nor wait for another thread that does.",
    ),
}  # fmt: skip
_TYPES = {
    "integer": "int", "number": "float", "choice": "str", "pair": "tuple[int, int]",
    "image": "str | Path | Image.Image | np.ndarray",
}  # fmt: skip


def _type(entry: Declared) -> str:
    kind = _TYPES[entry.type]
    if entry.per == "prompt":
        kind += " | Sequence[Any]" if entry.type == "image" else f" | Sequence[{kind}]"
    return f"{kind} | None"


def _described(entry: Declared) -> str:
    text = entry.help[0].lower() + entry.help[1:] if entry.help[1:2].islower() else entry.help
    default = "" if entry.default is None else f" {entry.default} when not given."
    each = " One for all prompts, or one each." if entry.per == "prompt" else ""
    picture = (
        " A file, a PIL image in RGB, or an array [H, W, 3], 8-bit or floats in [0, 1]; instead of "
        "a picture to begin with also latents [B, C, h, w]."
        if entry.type == "image"
        else ""
    )
    return text + each + picture + default


def signature() -> str:
    """Return the text of the module with the pipeline's call."""
    lines = [_HEAD.rstrip("\n")]
    lines += [f"        {name}: {_type(entry)} = None," for name, entry in PARAMETERS.items()]
    lines += [
        f"        {name}: {kind} = {default}," for name, (kind, default, _) in _OTHERS.items()
    ]
    lines.append("    ) -> PipelineOutput:")
    lines.append('        """Generate one image for each prompt, or several.')
    lines += ["", "        Where nothing else is said, what is not given is the bundle's default."]
    lines += ["", "        Args:"]
    described = {
        **_ARGUMENTS,
        **{name: _described(entry) for name, entry in PARAMETERS.items()},
        **{name: text for name, (_, _, text) in _OTHERS.items()},
    }
    for name, text in described.items():
        lines += textwrap.wrap(
            f"{name}: {text}", 100, initial_indent=" " * 12, subsequent_indent=" " * 16,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip
    lines += [
        "",
        "        Raises:",
        "            InvalidRequestError: an argument out of range; the message names it. Or a "
        "callback",
        "                called the pipeline that it is called by.",
        '        """',
        "        arguments: dict[str, Any] = {",
    ]
    given = [name for name in described if name not in ("parameters", "callback_on_step_end")]
    lines += [f'            "{name}": {name},' for name in given]
    lines += [
        "        }",
        "        return self._generate(arguments | dict(parameters or {}), callback_on_step_end)",
        "",
    ]
    text = "\n".join(lines)
    return subprocess.run(
        [sys.executable, "-P", "-m", "ruff", "format", "--stdin-filename", str(SIGNATURE), "-"],
        input=text, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def schema() -> str:
    """Return the JSON schema of manifests."""
    return json.dumps(Manifest.model_json_schema(), indent=1) + "\n"


GENERATED: dict[Path, Callable[[], str]] = {SIGNATURE: signature, SCHEMA: schema}

if __name__ == "__main__":
    for file, make in GENERATED.items():
        file.write_text(make(), encoding="utf-8")
