"""`manifest.json`: what a bundle holds, as a typed, versioned schema.

Everything that runs a bundle reads this file first; `engines/README.md` describes it for
people who embed one, `bundle/manifest.schema.json` is its JSON schema.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tgate_export.bundle.json_file import parse_json
from tgate_export.bundle.manifest_checks import check_references
from tgate_export.common.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"

DType = Literal["float32", "float16", "int64"]
Precision = Literal["fp32", "fp16"]

# What the host computes for a denoiser, f32, from sizes in pixels and the call of a video:
# time_ids      [B,6]  original height and width, crop top and left, target height and width
# resolution    [B,2]  height and width
# aspect_ratio  [B,1]  height / width
# video_ids     [B,3]  frames a second - 1, motion bucket, deviation of the noise on the image
# How the denoiser is told to follow the prompt: by a second pass without it, by an embedding of the
# scale, or not at all.
Guidance = Literal["classifier-free", "embedded", "none"]
HostInput = Literal["time_ids", "resolution", "aspect_ratio", "video_ids"]


def _inside_bundle(path: str) -> str:
    pure = PurePosixPath(path)
    if not path or "\\" in path or "\0" in path or pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"path {path!r} leaves the bundle")
    if str(pure) != path or not pure.parts:
        raise ValueError(f"path {path!r} is not in its plain form {str(pure)!r}")
    if not path.isprintable():
        raise ValueError(f"path {path!r} has characters that cannot be printed")
    return path


def _plain_name(name: str) -> str:
    # They become names of files, and of what a server or another language calls things.
    if not re.fullmatch(r"(?!\.)[A-Za-z0-9_.+-]{1,64}", name):
        raise ValueError(f"name {name!r} is not a plain name")
    return name


BundlePath = Annotated[str, AfterValidator(_inside_bundle)]
Name = Annotated[str, AfterValidator(_plain_name)]
_LARGEST = 2**31 - 1  # what any language that embeds a bundle counts with
Positive = Annotated[int, Field(gt=0, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
MAX_RANK = 8


class BundleModel(BaseModel):
    """What every part of a bundle's records is: frozen, typed strictly, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Tensor(BundleModel):
    """A graph's input or output; a dimension is a number or the name of a free one."""

    name: Name
    dtype: DType
    shape: Annotated[tuple[Positive | Name, ...], Field(max_length=MAX_RANK)]


class Graph(BundleModel):
    """One ONNX graph of the bundle."""

    file: BundlePath
    weights: BundlePath | None = Field(description="external data file, shared by the denoisers")
    precision: Precision = Field(description="of its weights and computation")
    float32_attention: bool = Field(
        default=False, description="attention products are fp32 whatever the precision"
    )
    float32_layers: Count = Field(
        default=0, description="linear layers that are fp32 whatever the precision"
    )
    parameters: int = Field(description="number of weights this graph uses")
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Cache(BundleModel):
    """One stacked cache tensor of attention outputs [batch, layers, tokens, width].

    tokens = ceil(latent_height / downsample) * ceil(latent_width / downsample), times the frames of
    a video. A cache of every guidance pass is [batch, passes, layers, tokens, width].
    """

    tensor: Name
    kind: Literal["cross_cache", "self_passes", "self_cache"]
    passes: Positive | None = Field(
        description="unconditional, then conditional; null: one for all"
    )
    downsample: Positive | None = Field(
        description="null: one token, which stands for all, whatever the size"
    )
    width: Positive
    layers: tuple[str, ...] = Field(description="module path of each index on the layers axis")


class Range(BundleModel):
    """Smallest, usual and largest value of a dimension; all equal when it is fixed."""

    min: Positive
    opt: Positive
    max: Positive

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"{self} is not in the order MIN <= OPT <= MAX")
        return self

    @property
    def fixed(self) -> bool:
        """Whether the dimension has a single value."""
        return self.min == self.max

    def __contains__(self, value: int) -> bool:
        return self.min <= value <= self.max

    def __str__(self) -> str:
        return str(self.opt) if self.fixed else f"{self.min}:{self.opt}:{self.max}"


DEFAULT_BATCH = Range(min=1, opt=1, max=8)  # of a bundle's graphs


class Size(BundleModel):
    """Image size in pixels; `multiple` divides every height and width."""

    height: Range
    width: Range
    multiple: Positive


class Latents(BundleModel):
    """The space the denoiser works in: [batch, channels, height / downscale, width / ...]."""

    channels: Positive
    downscale: Positive = Field(description="pixels of an image side for one latent")
    frames: Positive | None = Field(
        default=None,
        description="of a video: `channels` are those of all its frames, one after another, and "
        "`vae_decoder` gives [batch, frames, height, width, 3]",
    )


class Defaults(BundleModel):
    """What `generate` uses when it is not told otherwise."""

    num_inference_steps: Positive
    gate_step: Positive
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)]
    scheduler: str
    sp_interval: Positive = 1
    fi_interval: Positive = 1
    warm_up: Count = 0


class Source(BundleModel):
    """Where the weights came from."""

    kind: Literal["packaged", "local", "hub", "random"]
    model: str
    revision: str | None
    fingerprint: str = Field(description="sha256 over the configuration and weight files")


class Sampler(BundleModel):
    """A sampler compiled to per-step weights."""

    file: BundlePath
    scheduler_class: str
    extra_evaluations: Count
    max_steps: Positive


class Tokenizer(BundleModel):
    """A `tokenizers` file and how prompts are padded and truncated."""

    file: BundlePath
    max_length: Annotated[int, Field(gt=0, le=2**16)]
    pad_token_id: Count
    eos_token_id: Count
    mask: Name | None = Field(
        description="graph input that takes 1 for a token and 0 for padding [B,T], if there is one"
    )


class File(BundleModel):
    """Size in bytes and content hash of a file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]


class Manifest(BundleModel):
    """The whole of `manifest.json`."""

    schema_version: Literal[1]
    name: str
    family: str
    source: Source
    precision: Precision
    build_key: str = Field(description="hash of everything the build depended on")
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    defaults: Defaults
    batch: Range
    size: Size
    latents: Latents
    tokenizers: dict[Name, Tokenizer] = Field(
        description="by the input of `text_encoder` that takes the ids"
    )
    clip_skips: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="how many of the text encoder's last layers a prompt can skip; above 0, "
        "`text_encoder` takes `clip_skip` [B]",
    )
    guidance: Guidance
    absent_negative_prompt: Literal["empty", "zeros"] = Field(
        description="what stands for a missing negative prompt: an empty text, or zeros in place "
        "of the text encoder's outputs"
    )
    conditioning: dict[Name, HostInput] = Field(
        description="denoiser inputs that the host computes, and what they are"
    )
    graphs: dict[Name, Graph]
    cache: tuple[Cache, ...]
    samplers: dict[Name, Sampler]
    versions: dict[str, str]
    files: dict[BundlePath, File]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        check_references(self)
        return self

    @property
    def prompt_encoder(self) -> str:
        """The graph that reads what is to be drawn: a text, or for a video its image."""
        return "image_encoder" if "image_encoder" in self.graphs else "text_encoder"

    @property
    def takes_negative(self) -> bool:
        """Whether there are negative prompts: an unconditional pass with embeddings of its own."""
        return self.guidance == "classifier-free" and self.latents.frames is None

    def graph(self, name: str) -> Graph:
        """Return a graph by name.

        Raises:
            BundleError: when the bundle has none of that name.
        """
        if name not in self.graphs:
            raise BundleError(
                f"bundle {self.name!r} has no graph {name!r}: "
                "build it again with `tgate-export build`"
            )
        return self.graphs[name]

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return self.model_dump_json(indent=1) + "\n"


def parse_manifest(text: str, where: Path) -> Manifest:
    """Read a manifest's text.

    Raises:
        BundleError: when it is no manifest, or one of a newer schema version.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{where} is not valid JSON ({error}): build the bundle again") from None
    if not isinstance(raw, dict) or "schema_version" not in raw:
        raise BundleError(f"{where} is not a bundle manifest: it has no schema_version")
    version = raw["schema_version"]
    if type(version) is not int:  # `true` would pass for 1
        raise BundleError(f"{where} is not a bundle manifest: schema_version is {version!r}")
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema version {version}, this tgate-export reads up to "
            f"{SCHEMA_VERSION}: update tgate-export, or build the bundle again"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{where}: {field}: {first['msg']}: build the bundle again") from None
