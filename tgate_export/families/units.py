"""What is exported together: one component's graphs, which share a weights file (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

from tgate_export.bundle.origins import FromGraph
from tgate_export.families.source import ModelSource

DENOISER = "denoiser"


@dataclass(frozen=True)
class Unit:
    """Graphs that are exported together.

    Attributes:
        name: the graph's, or `denoiser` for all phases; its weights are `<name>.weights`.
        components: those of the pipeline whose weights the graphs use.
    """

    name: str
    components: tuple[str, ...]


def prompt_encoder(source: ModelSource) -> str:
    """Return the graph that reads what is to be generated: a text, or for a video its image."""
    return "text_encoder" if source.family.tokenizers(source) else "image_encoder"


def units(source: ModelSource, *, image_to_image: bool) -> tuple[Unit, ...]:
    """Return what a bundle's graphs are exported in, in this order."""
    family = source.family
    encoders = tuple(name for name in family.weights if name.startswith(("text_", "image_")))
    image = any(
        isinstance(entry.origin, FromGraph) and entry.origin.graph == "vae_encoder"
        for entry in source.conditioning().conditions
    )
    return (
        Unit(prompt_encoder(source), encoders),
        Unit(DENOISER, (family.denoiser,)),
        *([Unit("vae_encoder", ("vae",))] if image_to_image or image else []),
        Unit("vae_decoder", ("vae",)),
    )
