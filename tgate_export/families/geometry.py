"""Sizes of a pipeline's images and latents, from its configuration alone (no torch)."""

from __future__ import annotations

from tgate_export.errors import InvalidRequestError, ModelError
from tgate_export.families.source import ModelSource


def vae_downscale(source: ModelSource) -> int:
    """Pixels of an image side for one latent."""
    return int(2 ** (_levels(source, "vae") - 1))


def size_multiple(source: ModelSource, *, dynamic: bool) -> int:
    """Return what must divide an image side.

    A fixed size needs only what the VAE and a transformer's patches divide by; with a dynamic
    size every level of a UNet must halve exactly, so that one graph serves all sizes.
    """
    denoiser = source.family.denoiser
    multiple = vae_downscale(source) * int(source.config(denoiser).get("patch_size") or 1)
    return multiple * (2 ** (_levels(source, denoiser) - 1) if dynamic else 1)


def default_size(source: ModelSource) -> int:
    """Image side that the denoiser was trained at, in pixels."""
    denoiser = source.family.denoiser
    sample_size = source.config(denoiser).get("sample_size")
    if not isinstance(sample_size, int):
        raise InvalidRequestError(
            f"{source.model} does not say its size ({denoiser}/config.json: sample_size): "
            "give --size"
        )
    return sample_size * vae_downscale(source)


def _levels(source: ModelSource, component: str) -> int:
    channels = source.config(component).get("block_out_channels")
    if not isinstance(channels, list) or not channels:
        raise ModelError(f"{source.model}: {component}/config.json has no block_out_channels")
    return len(channels)
