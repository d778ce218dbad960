"""Where the inputs of a bundle's graphs come from: what a runtime fills them with.

In JSON an origin is an object with a key that says which kind it is, such as
`{"parameter": "guidance_scale"}`; `engines/README.md` describes each.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
)

from tgate_export.bundle.fields import BundleModel, Name

# What the host computes, f32: see `runtime.formulas`.
Formula = Literal[
    "time_ids", "aesthetic_ids", "negative_aesthetic_ids", "resolution", "aspect_ratio",
    "video_ids", "frame_guidance_scale",
]  # fmt: skip
Loop = Literal["sample", "timestep", "noise_pred", "history", "weights", "noise", "latents"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
# Runs of the text encoder that a denoiser reads the outputs of, at most: 1232 tokens of CLIP.
MOST_CHUNKS = 16
# What an encoder reads: the same graph runs for either.
Of = Literal["prompt", "negative_prompt"]


class _Origin(BundleModel):
    @model_serializer(mode="wrap")
    def _brief(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what is not said."""
        return {name: value for name, value in serialize(self).items() if value is not None}


class FromParameter(_Origin):
    """The value of a parameter of each image [B], or of what has its shape [B, ...]."""

    parameter: Name
    of: Of | None = Field(
        default=None, description="of an encoder: the text it is for; 0 for the other one"
    )


class FromTokens(_Origin):
    """The token ids [B, T] of the text that the graph encodes."""

    tokens: Name


class FromMask(_Origin):
    """1 for each token of the text, and 0 for padding [B, T]."""

    mask: Name


class FromGraph(_Origin):
    """What another graph makes of the prompt, of the negative one, or of the call's image."""

    graph: Name
    output: Name
    of: Of | None = None
    chunks: Annotated[int, Field(ge=1, le=MOST_CHUNKS)] | None = Field(
        default=None,
        description="of an output by token [B, T, D]: the input is those of so many runs, one "
        "after another [B, chunks * T, D]",
    )


class FromImage(_Origin):
    """A picture that the call brings [B, H, W, 3], with noise on it if a parameter says so."""

    image: Name
    range: tuple[
        Annotated[float, Field(allow_inf_nan=False)], Annotated[float, Field(allow_inf_nan=False)]
    ]
    layout: Literal["BHWC"]
    noise: Name | None = Field(
        default=None,
        description="parameter: standard deviation of the noise, for a picture in [-1, 1]",
    )


class FromFormula(_Origin):
    """What the host computes [B, n]."""

    formula: Formula


class FromCache(_Origin):
    """What an earlier step's graph wrote."""

    cache: Name


class FromLoop(_Origin):
    """A tensor of the step loop."""

    loop: Loop


def _kind(value: Any) -> str | None:
    """Return the key that says which kind an origin is."""
    if isinstance(value, BundleModel):
        value = dict(value)
    return (
        next((name for name in _KINDS if name in value), None) if isinstance(value, dict) else None
    )


_KINDS = ("parameter", "tokens", "mask", "graph", "image", "formula", "cache", "loop")
Origin = Annotated[
    Annotated[FromParameter, Tag("parameter")]
    | Annotated[FromTokens, Tag("tokens")]
    | Annotated[FromMask, Tag("mask")]
    | Annotated[FromGraph, Tag("graph")]
    | Annotated[FromImage, Tag("image")]
    | Annotated[FromFormula, Tag("formula")]
    | Annotated[FromCache, Tag("cache")]
    | Annotated[FromLoop, Tag("loop")],
    Discriminator(
        _kind,
        custom_error_type="origin",
        custom_error_message="Input should be an origin that this reader knows",
    ),
]
