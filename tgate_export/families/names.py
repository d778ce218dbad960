"""The model names that `build --model` knows, and where their defaults come from."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from tgate_export.bundle.manifest import Defaults
from tgate_export.errors import InvalidRequestError
from tgate_export.families import stable_diffusion

# diffusers' upsampler changes its path at 64 samples, and guidance doubles the batch.
MAX_BATCH = 31

_PACKAGE = Path(__file__).resolve().parent.parent
_CONFIGS = Path(__file__).resolve().parent / "configs"


@dataclass(frozen=True)
class NamedModel:
    """A model that can be built by name.

    Attributes:
        name: what `--model` takes.
        family: the family module that loads it.
        summary: one line for people.
        directory: packaged pipeline; only its configuration when `hub_id` is set.
        hub_id: Hugging Face id of the pretrained weights; None when they are packaged.
        denoiser_parameters: weights of the denoiser.
        size: default image side in pixels.
        defaults: how it is sampled unless told otherwise.
        origin: where the defaults come from.
    """

    name: str
    family: str
    summary: str
    directory: Path
    hub_id: str | None
    denoiser_parameters: int
    size: int
    defaults: Defaults
    origin: str


NAMED_MODELS = {
    model.name: model
    for model in (
        NamedModel(
            name="shapes",
            family="stable-diffusion",
            summary="small demo pipeline in this package: 'a red circle on a blue background'",
            directory=_PACKAGE / "data" / "shapes",
            hub_id=None,
            denoiser_parameters=4_242_568,
            size=64,
            defaults=stable_diffusion.DEFAULTS.model_copy(update={"guidance_scale": 5.0}),
            origin="measured with scripts/evaluate_shapes.py",
        ),
        NamedModel(
            name="sd15",
            family="stable-diffusion",
            summary="Stable Diffusion 1.5",
            directory=_CONFIGS / "sd15",
            hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
            denoiser_parameters=859_520_964,
            size=512,
            defaults=stable_diffusion.DEFAULTS,
            origin="T-GATE paper and README: 25 steps, gate step 10",
        ),
    )
}


def unknown_model(model: str) -> InvalidRequestError:
    """Return the error for a model that is neither a name, a folder nor an id."""
    near = difflib.get_close_matches(model.lower(), NAMED_MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(NAMED_MODELS)}."
    return InvalidRequestError(
        f"unknown model {model!r}: {hint} It can also be a diffusers folder or a "
        "Hugging Face id (owner/name)"
    )
