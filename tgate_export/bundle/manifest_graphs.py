"""The parts of a manifest that describe graphs, caches and the method that chooses among them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tgate_export.bundle.fields import MAX_RANK, BundleModel, BundlePath, Count, Name, Positive
from tgate_export.bundle.origins import Origin
from tgate_export.bundle.tiles import Tiles
from tgate_export.steps.rule import Guard

DType = Literal["float32", "float16", "int64"]
Precision = Literal["fp32", "fp16"]


class Tensor(BundleModel):
    """A graph's output; a dimension is a number or the name of a free one."""

    name: Name
    dtype: DType
    shape: Annotated[tuple[Positive | Name, ...], Field(max_length=MAX_RANK)]


class Input(Tensor):
    """A graph's input, and where it comes from."""

    origin: Origin = Field(validation_alias="from", serialization_alias="from")


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
    tiles: Tiles | None = Field(
        default=None, description="of the VAE: how it is run on images that are larger than a tile"
    )
    inputs: tuple[Input, ...]
    outputs: tuple[Tensor, ...]


class Cache(BundleModel):
    """A tensor that one step writes and a later step reads; a graph's output of the same name.

    Of attention it is [batch, layers, tokens, width]; one of every guidance pass, unconditional,
    then conditional, is [batch, passes, layers, tokens, width]. Of guidance it is of the latents'
    shape.
    """

    dtype: DType
    shape: Annotated[tuple[Positive | Name, ...], Field(max_length=MAX_RANK)]
    kind: Name = Field(description="such as cross_cache, self_passes, self_cache or guidance_delta")
    layers: tuple[str, ...] = Field(
        default=(), description="module path of each index on the layers axis"
    )


class Dimension(BundleModel):
    """A named dimension: times * ceil(latent_height / downsample) * ceil(latent_width / ...)."""

    downsample: Positive
    times: Positive = 1


class Method(BundleModel):
    """A way to reuse computation over the steps of a run."""

    parameters: tuple[Name, ...] = Field(description="those that its rule reads")
    at_least: dict[Name, Name] = Field(
        default={}, description="parameters that are at least as large as another one"
    )
    rule: Annotated[tuple[Guard, ...], Field(min_length=1)] = Field(
        description="the phase of a step: the first guard whose comparisons all hold"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> Method:
        if self.rule[-1].all:
            raise ValueError("the rule's last guard has comparisons, so that a step may have none")
        read = {
            name
            for guard in self.rule
            for comparison in guard.all
            for name in comparison.parameters
        }
        if unknown := sorted((read | {*self.at_least, *self.at_least.values()})
                             - set(self.parameters)):  # fmt: skip
            raise ValueError(f"{unknown[0]!r} is not one of its parameters")
        return self
