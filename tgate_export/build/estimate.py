"""What a build will take, from the sizes of a model's files: roughly, but before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from tgate_export.families.model_files import count_parameters
from tgate_export.families.names import NamedModel
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
        bytes: of the bundle; and of what is downloaded, where it is, since the named models'
            repositories have their weights in fp32.
    """

    minutes: int
    bytes: int


def estimate(source: ModelSource) -> Estimate:
    """Return what the build of a model will take, whose files are here."""
    parameters = sum(
        count_parameters(path, part.prefix if (part := source.part(component)) else "")
        for component in source.weights
        for path in source.weight_paths(component)
    )
    return _estimate(parameters)


def estimate_named(model: NamedModel) -> tuple[Estimate, int]:
    """Return what the build of a model takes that may not be here, and its peak of memory, bytes.

    The peak was measured in fp16; in fp32 the largest component weighs twice as much.
    """
    memory = round(model.build_gib * 2**30) + _BYTES // 2 * max(model.parameters.values())
    return _estimate(sum(model.parameters.values())), memory


def _estimate(parameters: int) -> Estimate:
    seconds = _LEAST_SECONDS + _SECONDS_OF_BILLION * parameters / 1e9
    return Estimate(minutes=max(1, round(seconds / 60)), bytes=_LEAST_BYTES + _BYTES * parameters)
