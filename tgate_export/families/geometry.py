"""Sizes of a pipeline's images and latents, from its configuration alone (no torch)."""

from __future__ import annotations

from typing import Any

from tgate_export.bundle.manifest import Latents, Range, Size
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument
from tgate_export.families.source import ModelSource


def vae_downscale(source: ModelSource) -> int:
    """Pixels of an image side for one latent."""
    return int(2 ** (_levels(source, "vae") - 1))


def latents(source: ModelSource) -> Latents:
    """Return the space that the denoiser works in."""
    downscale, frames = vae_downscale(source), source.conditioning().frames
    config = source.config(source.family.denoiser)
    if frames is None:
        return Latents(channels=config["in_channels"], downscale=downscale)
    return Latents(channels=frames * config["out_channels"], downscale=downscale, frames=frames)


def size_multiple(source: ModelSource, *, dynamic: bool) -> int:
    """Return what must divide an image side.

    A fixed size needs only what the VAE and a transformer's patches divide by; with a dynamic
    size every level of a UNet must halve exactly, so that one graph serves all sizes.
    """
    denoiser = source.family.denoiser
    multiple = vae_downscale(source) * int(source.config(denoiser).get("patch_size") or 1)
    return multiple * (2 ** (_levels(source, denoiser) - 1) if dynamic else 1)


def check_size(source: ModelSource, size: Size) -> Size:
    """Return the size at which a bundle is compared with PyTorch: its own, or a smaller one.

    ONNX Runtime's CPU keeps whole attention matrices: 47 GB for 14 frames of 1024x576.
    """
    if not latents(source).video:
        return size
    exact = size_multiple(source, dynamic=True)

    def smaller(side: Range) -> Range:
        # The same remainder: a side that does not halve evenly makes another graph.
        value = min(side.opt, 4 * exact + side.opt % exact)
        return Range(min=value, opt=value, max=value)

    return size.model_copy(update={"height": smaller(size.height), "width": smaller(size.width)})


def vae_size(size: Size, tile: int) -> Size:
    """Return the size that graphs of the VAE are made for.

    Args:
        size: of images.
        tile: sides of tiles in pixels; 0 where images are taken whole.
    """
    if not tile:
        return size

    def side(of: Range) -> Range:
        return Range(min=min(of.min, tile), opt=min(of.opt, tile), max=min(of.max, tile))

    return size.model_copy(update={"height": side(size.height), "width": side(size.width)})


def default_size(source: ModelSource) -> tuple[int, int]:
    """Width and height that the denoiser was trained at, in pixels."""
    if source.family.size is not None:
        return source.family.size
    denoiser = source.family.denoiser
    sample_size = source.config(denoiser).get("sample_size")
    # Of a pair, the first is the height, as the UNet's own.
    pair: list[Any] = sample_size if isinstance(sample_size, list) else [sample_size] * 2
    if len(pair) != 2 or not all(isinstance(side, int) for side in pair):
        raise InvalidRequestError(
            f"{source.model} does not say its size ({denoiser}/config.json: sample_size)",
            "give ",
            Argument("size"),
        )
    height, width = (side * vae_downscale(source) for side in pair)
    return width, height


def _levels(source: ModelSource, component: str) -> int:
    channels = source.config(component).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise ModelError(f"{source.model}: {component}/config.json has no block_out_channels")
    return len(channels)
