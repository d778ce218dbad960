"""The command that builds a bundle again with something that it lacks."""

from __future__ import annotations

import shlex

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.manifest import DEFAULT_BATCH, Size
from tgate_export.common.errors import InvalidRequestError
from tgate_export.runtime.request import Request
from tgate_export.steps.step_plan import StepPlan

# The option of `build` that adds a graph.
_INTERVALS = {"full_reuse": "sp_interval", "gated_reuse": "fi_interval"}


def check_graphs(bundle: Bundle, step_plan: StepPlan, request: Request) -> None:
    """Refuse a call whose graphs are not all in the bundle.

    Raises:
        InvalidRequestError: says how to build the missing one.
    """
    if request.begins_with_image and "vae_encoder" not in bundle.manifest.graphs:
        command = rebuild_command(bundle, image_to_image=True)
        raise InvalidRequestError(
            f"image: this bundle was built without image-to-image; build it with: {command}"
        )
    lacking = {
        option: request.value(option)
        for graph, option in _INTERVALS.items()
        if graph not in bundle.manifest.graphs and graph in step_plan.phases
    }
    if lacking:
        settings = " and ".join(f"{option} {value}" for option, value in lacking.items())
        raise InvalidRequestError(
            f"{settings}: this bundle was built without the graphs that reuse self-attention like "
            f"that; build it with them: {rebuild_command(bundle, **lacking)}"
        )


def rebuild_command(bundle: Bundle, **changes: object) -> str:
    """Return a shell command that builds the bundle again, with some options changed.

    Args:
        bundle: an open bundle.
        **changes: options of `tgate-export build`, with underscores; True for a flag; None leaves
            one away.
    """
    manifest = bundle.manifest
    defaults = manifest.defaults
    options: dict[str, object] = {
        "model": manifest.source.model,
        "weights": "random" if manifest.source.kind == "random" else "pretrained",
        "precision": manifest.precision,
        "size": _size(manifest.size),
        # Without a batch, graphs take the default range and plans a single image.
        "batch": None if manifest.batch == DEFAULT_BATCH else manifest.batch,
        "gate_step": defaults.gate_step,
        "sp_interval": defaults.sp_interval,
        "fi_interval": defaults.fi_interval,
        "warm_up": defaults.warm_up,
        "out": bundle.path,
        **({"guidance": "none"} if manifest.guidance == "none" else {}),
        "image_to_image": True
        if "vae_encoder" in manifest.graphs and manifest.latents.frames is None
        else None,
        **changes,
    }
    words = ["tgate-export", "build"]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _size(size: Size) -> str:
    width, height = size.width, size.height
    if width.fixed and height.fixed:
        return f"{width.opt}x{height.opt}"
    ends = ("min", "opt", "max")
    return ":".join(f"{getattr(width, end)}x{getattr(height, end)}" for end in ends)
