"""Which sampler a call means, by whatever name."""

from __future__ import annotations

from typing import Any

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.sampler_names import MOST_STEPS, SCHEDULER_CONFIG, find_name
from tgate_export.common.errors import InvalidRequestError


def chosen_sampler(manifest: Manifest, text: Any) -> tuple[str, int | None]:
    """Return the sampler that a call means, and the one number of steps that it has, if it has one.

    It may be one that the bundle has no table of, see `compiled_samplers`.

    Args:
        manifest: the bundle's.
        text: its name, ours or that of AUTOMATIC1111's web UI.

    Raises:
        InvalidRequestError: there is none of that name, or the bundle has not and cannot have it.
    """
    found = None
    if isinstance(text, str):
        if text in manifest.samplers:
            return text, None
        found = find_name(text)
    more = SCHEDULER_CONFIG in manifest.files
    if found is None or (str(found) not in manifest.samplers and not more):
        raise InvalidRequestError(
            f"unknown scheduler {text!r:.200}: this bundle has {', '.join(manifest.samplers)}",
            field="scheduler",
        )
    return str(found), found.steps


def most_steps(manifest: Manifest, scheduler: str) -> int:
    """Return the most steps that a sampler can have.

    Args:
        manifest: the bundle's.
        scheduler: a name as `chosen_sampler` returns it.
    """
    found = manifest.samplers.get(scheduler)
    return MOST_STEPS if found is None else found.max_steps


def has_starts(manifest: Manifest) -> bool:
    """Whether a bundle's tables have runs that begin at a later step, with an image."""
    return "vae_encoder" in manifest.graphs and manifest.takes_prompt


def require_table(manifest: Manifest, scheduler: str, *, starts: bool = False) -> None:
    """Refuse a sampler that would have to be compiled, for who is not the user of this machine.

    Each takes seconds and PyTorch's memory, and is kept: strangers' would take a server's.

    Args:
        manifest: the bundle's.
        scheduler: a name as `chosen_sampler` returns it.
        starts: whether a run is to begin with an image.

    Raises:
        InvalidRequestError: the bundle has no such table of it.
    """
    if starts and not has_starts(manifest):
        raise InvalidRequestError(
            "this server's bundle was built without image-to-image, so that no run of it begins "
            "with an image"
        )
    if scheduler not in manifest.samplers:
        raise InvalidRequestError(
            f"this server's bundle was built without {scheduler:.60}: it has "
            f"{', '.join(manifest.samplers)}",
            field="scheduler",
        )
