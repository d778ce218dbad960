"""The bundles that can be embedded."""

from __future__ import annotations

from pathlib import Path

from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.manifest import MANIFEST_NAME
from tgate_export.bundle.plans import RECORD_NAME, plan_sets
from tgate_export.common.errors import InvalidRequestError


def files_of(bundle: Bundle) -> list[str]:
    """List what makes up an intact bundle: the manifest, what it lists, and the plans.

    Nothing else of its folder is to be copied, such as what a build of plans left there.
    """
    files = [MANIFEST_NAME, *bundle.manifest.files]
    for plans in plan_sets(bundle.path):
        names = [RECORD_NAME, *(plan.file for plan in plans.plans.values())]
        files += [(plans.path / name).relative_to(bundle.path).as_posix() for name in names]
    return files


def open_image_bundle(path: str | Path) -> Bundle:
    """Open a bundle that generates images.

    Raises:
        BundleError: the bundle is missing, damaged, or newer than this package.
        InvalidRequestError: it generates videos.
    """
    bundle = open_bundle(path)
    if bundle.manifest.latents.video:
        raise InvalidRequestError(
            f"{path} generates videos, which only the Python runtime does: use TGatePipeline"
        )
    return bundle
