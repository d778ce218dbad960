"""`manifest.json`: what a bundle holds, as a typed, versioned schema.

Everything that runs a bundle reads this file first; `engines/README.md` describes it for
people who embed one, `bundle/manifest.schema.json` is its JSON schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tgate_export.bundle.fields import BundleModel, BundlePath, Count, Name, Positive
from tgate_export.bundle.manifest_checks import check_references
from tgate_export.bundle.manifest_graphs import Cache, Dimension, Graph, Method, Precision
from tgate_export.bundle.origins import (
    FromCache,
    FromFormula,
    FromGraph,
    FromImage,
    FromParameter,
    FromTokens,
)
from tgate_export.common.errors import BundleError
from tgate_export.parameters import Parameter
from tgate_export.steps.step_plan import PhaseCaches

# A newer minor version adds fields, which older readers ignore; what a reader cannot ignore is in
# `requires` as well.
SCHEMA_VERSION, SCHEMA_MINOR = 2, 1
MANIFEST_NAME = "manifest.json"

# How the denoiser is told to follow the prompt: by a second pass without it, by an embedding of the
# scale, or not at all.
Guidance = Literal["classifier-free", "embedded", "none"]


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

    @property
    def video(self) -> bool:
        """Whether they are a video's."""
        return self.frames is not None

    def shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of latents as graphs see them, for a size in pixels: [B, C, h, w]."""
        return (batch, self.channels, height // self.downscale, width // self.downscale)

    def unfolded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return such a shape as callers see it: of a video [B, F, C, h, w]."""
        if self.frames is None:
            return shape
        batch, channels, *sides = shape
        return (batch, self.frames, channels // self.frames, *sides)


class Defaults(BundleModel):
    """What a run uses when it is not told otherwise."""

    num_inference_steps: Positive
    gate_step: Positive
    guidance_scale: Annotated[float, Field(allow_inf_nan=False)]
    scheduler: str
    sp_interval: Positive = 1
    fi_interval: Positive = 1
    warm_up: Count = 0
    cache_blend: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    guidance_carry: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class AppliedLora(BundleModel):
    """A LoRA file that changed the weights."""

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scale: Annotated[float, Field(allow_inf_nan=False)]


class AddedEmbedding(BundleModel):
    """A textual inversion file whose vectors a token stands for."""

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    token: str


class Source(BundleModel):
    """Where the weights came from."""

    kind: Literal["packaged", "local", "hub", "random"]
    model: str
    revision: str | None
    fingerprint: str = Field(
        description="sha256 over the configuration, weight, LoRA and textual inversion files, "
        "scales and tokens"
    )
    config: str | None = Field(
        default=None, description="of a file: whose configurations it was built with, if told"
    )
    vae: str | None = Field(
        default=None, description="the file or folder of a VAE in place of the model's own"
    )
    loras: tuple[AppliedLora, ...] = Field(
        default=(), description="LoRA files that changed the weights, in this order"
    )

    embeddings: tuple[AddedEmbedding, ...] = Field(
        default=(), description="textual inversion files, in the order of their tokens' ids"
    )

    def given_loras(self) -> tuple[tuple[str, float], ...]:
        """Return the LoRA files with their scales, as `build_bundle` takes them."""
        return tuple((lora.file, lora.scale) for lora in self.loras)

    def given_embeddings(self) -> tuple[tuple[str, str], ...]:
        """Return the textual inversion files with their tokens, as `build_bundle` takes them."""
        return tuple((embedding.file, embedding.token) for embedding in self.embeddings)


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
    columns: tuple[Count, Positive] | None = Field(
        default=None,
        description="of the text encoder's output by token [B, T, D], those that come of these "
        "ids: from the first to before the second; weights of a prompt act on each tokenizer's",
    )


class File(BundleModel):
    """Size in bytes and content hash of a file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0, lt=2**63)]


class Manifest(BundleModel):
    """The whole of `manifest.json`."""

    schema_version: Literal[2]
    schema_minor: Count = 0
    requires: tuple[Name, ...] = Field(
        default=(), description="abilities that a reader needs beyond those of 2.0"
    )
    name: str
    family: str
    source: Source
    precision: Precision
    build_key: str = Field(description="hash of everything the build depended on")
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    batch: Range
    size: Size
    latents: Latents
    parameters: dict[Name, Parameter] = Field(
        description="what a caller may set for a run, besides its size, seed and number of images"
    )
    tokenizers: dict[Name, Tokenizer]
    guidance: Guidance
    absent_negative_prompt: Literal["empty", "zeros"] = Field(
        description="what stands for a missing negative prompt: an empty text, or zeros in place "
        "of the text encoder's outputs"
    )
    graphs: dict[Name, Graph]
    methods: Annotated[dict[Name, Method], Field(min_length=1)]
    caches: dict[Name, Cache]
    dimensions: dict[Name, Dimension] = Field(default_factory=dict)
    samplers: dict[Name, Sampler]
    versions: dict[str, str]
    files: dict[BundlePath, File]

    @model_validator(mode="after")
    def _is_consistent(self) -> Manifest:
        check_references(self)
        return self

    @property
    def method(self) -> Method:
        """The method that runs use: the first."""
        return next(iter(self.methods.values()))

    @property
    def phases(self) -> tuple[str, ...]:
        """The denoiser graphs that the bundle has, in the order of its graphs."""
        named = {guard.phase for method in self.methods.values() for guard in method.rule}
        return tuple(name for name in self.graphs if name in named)

    @cached_property
    def phase_caches(self) -> Mapping[str, PhaseCaches]:
        """What each denoiser graph reads and writes."""
        return {
            name: PhaseCaches(
                tuple(
                    tensor.origin.cache
                    for tensor in self.graphs[name].inputs
                    if isinstance(tensor.origin, FromCache)
                ),
                tuple(
                    tensor.name
                    for tensor in self.graphs[name].outputs
                    if tensor.name in self.caches
                ),
            )
            for name in self.phases
        }

    @property
    def defaults(self) -> Defaults:
        """The defaults of the parameters that most bundles have."""
        fields = {
            name: self.parameters[name].default
            for name in Defaults.model_fields
            if name in self.parameters
        }
        # The scale at which classifier-free guidance is the prompt's pass alone, and no gate.
        without = {"guidance_scale": 1.0, "gate_step": fields["num_inference_steps"]}
        return Defaults.model_validate(without | fields)

    @property
    def vae_tile(self) -> int:
        """Sides of the tiles that the VAE takes, in pixels; 0 for whole images."""
        decoder = self.graphs.get("vae_decoder")
        return decoder.tiles.size if decoder is not None and decoder.tiles is not None else 0

    @property
    def prompt_encoder(self) -> str:
        """The graph that reads what is to be generated: a text, or for a video its image."""
        return "image_encoder" if "image_encoder" in self.graphs else "text_encoder"

    @cached_property
    def takes_negative(self) -> bool:
        """Whether there are negative prompts: an unconditional pass with embeddings of its own."""
        return any(
            isinstance(tensor.origin, FromGraph) and tensor.origin.of == "negative_prompt"
            for graph in self.graphs.values()
            for tensor in graph.inputs
        )

    @cached_property
    def chunks(self) -> Mapping[str, int]:
        """The prompt encoder's outputs by token, and of how many runs the denoiser reads them."""
        return {
            tensor.origin.output: tensor.origin.chunks
            for phase in self.phases
            for tensor in self.graphs[phase].inputs
            if isinstance(tensor.origin, FromGraph) and tensor.origin.chunks is not None
        }

    @property
    def prompt_chunks(self) -> int:
        """How many runs of the prompt encoder a prompt can have."""
        return max(self.chunks.values(), default=1)

    @cached_property
    def refines(self) -> bool:
        """Whether it is a refiner, which was trained to go on from a picture alone."""
        return any(
            isinstance(tensor.origin, FromFormula) and tensor.origin.formula == "aesthetic_ids"
            for graph in self.graphs.values()
            for tensor in graph.inputs
        )

    @cached_property
    def takes_prompt(self) -> bool:
        """Whether a run has a prompt; a video is made from its image."""
        return any(
            isinstance(tensor.origin, FromTokens)
            for graph in self.graphs.values()
            for tensor in graph.inputs
        )

    @cached_property
    def graph_parameters(self) -> frozenset[str]:
        """The parameters that graphs take as they are, so that there has to be a value."""
        return frozenset(
            tensor.origin.parameter
            for graph in self.graphs.values()
            for tensor in graph.inputs
            if isinstance(tensor.origin, FromParameter)
        )

    @cached_property
    def pictures(self) -> frozenset[str]:
        """The pictures that every run reads; image-to-image may do without its own."""
        return frozenset(
            tensor.origin.image
            for name in (self.prompt_encoder, *self.phases)
            if name in self.graphs
            for tensor in self.graphs[name].inputs
            if isinstance(tensor.origin, FromImage)
        )

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
