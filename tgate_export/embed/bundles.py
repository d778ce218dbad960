"""The bundles that can be embedded."""

from __future__ import annotations

from pathlib import Path

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.errors import InvalidRequestError


def open_image_bundle(path: str | Path) -> Bundle:
    """Open a bundle that draws images.

    Raises:
        BundleError: the bundle is missing, damaged, or newer than this package.
        InvalidRequestError: it draws videos.
    """
    bundle = open_bundle(path)
    if bundle.manifest.latents.frames is not None:
        raise InvalidRequestError(
            f"{path} draws videos, which only the Python runtime does: use TGatePipeline"
        )
    return bundle
