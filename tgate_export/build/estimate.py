"""What a build will take, from the sizes of a model's files: roughly, but before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from tgate_export.families.model_files import count_parameters
from tgate_export.families.source import ModelSource

_BYTES = 4  # of a parameter, in fp32
_LEAST_BYTES = 4 * 10**6  # graphs, sampler tables, a tokenizer
# Stable Diffusion 1.5, 1.07 G parameters, takes two cores 239 s (docs/build.md), `shapes` 50 s of
# one.
_LEAST_SECONDS = 40
_SECONDS_OF_BILLION = 190


@dataclass(frozen=True)
class Estimate:
    """What a build in fp32 takes where nothing of it is in the cache.

    Attributes:
        minutes: on two cores, at about the size of Stable Diffusion's images.
        bytes: of the bundle.
    """

    minutes: int
    bytes: int


def estimate(source: ModelSource) -> Estimate:
    """Return what the build of a model will take, whose files are here."""
    parameters = sum(
        count_parameters(path, part.prefix if (part := source.part(component)) else "")
        for component in source.family.weights
        for path in source.weight_paths(component)
    )
    seconds = _LEAST_SECONDS + _SECONDS_OF_BILLION * parameters / 1e9
    return Estimate(minutes=max(1, round(seconds / 60)), bytes=_LEAST_BYTES + _BYTES * parameters)
