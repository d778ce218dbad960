"""What a build was asked for, and the key that says when nothing has to be built."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tgate_export
from tgate_export.bundle.manifest import (
    DEFAULT_BATCH,
    SCHEMA_VERSION,
    Guidance,
    Manifest,
    Range,
    Size,
    Source,
)
from tgate_export.bundle.manifest_graphs import Precision
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.errors import InvalidRequestError
from tgate_export.common.hints import Argument
from tgate_export.common.versions import versions_of
from tgate_export.families import geometry
from tgate_export.families.names import MAX_BATCH
from tgate_export.families.registry import family_module
from tgate_export.families.source import ModelSource
from tgate_export.parameters import PARAMETERS
from tgate_export.steps.rule import at_least_fault
from tgate_export.steps.tgate import AT_LEAST, CacheKind

_PACKAGES = (
    "torch", "diffusers", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime",
)  # fmt: skip


@dataclass(frozen=True)
class BuildOptions:
    """A build's settings after defaults are filled in; see `build_bundle`."""

    precision: Precision
    size: Size
    batch: Range
    gate_step: int
    sp_interval: int
    fi_interval: int
    warm_up: int
    guidance: Guidance
    image_to_image: bool = False

    @property
    def caches(self) -> tuple[CacheKind, ...]:
        """What the bundle can keep between steps: no more than its steps ask for."""
        kinds: list[CacheKind] = ["cross_cache"]
        if self.sp_interval > 1:
            kinds.append("self_passes")
        if self.fi_interval > 1:
            kinds.append("self_cache")
        return tuple(kinds)


def check_options(
    source: ModelSource,
    precision: Precision,
    size: tuple[Range, Range] | None,
    batch: Range | None,
    gate_step: int | None,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 0,
    image_to_image: bool = False,
) -> BuildOptions:
    """Fill in a build's settings from the model's own, and check them.

    Raises:
        InvalidRequestError: names the setting, and a value near it that would do.
    """
    frames = geometry.latents(source).frames or 1
    batch = batch or (DEFAULT_BATCH if frames == 1 else Range(min=1, opt=1, max=1))
    largest = MAX_BATCH // frames
    if batch.max > largest:
        of = "" if frames == 1 else f" for {frames} frames"
        raise InvalidRequestError(f"the batch may be {largest} at most{of}, got {batch}")
    gate = source.defaults.gate_step if gate_step is None else gate_step
    _check_method(
        {"gate_step": gate, "sp_interval": sp_interval, "fi_interval": fi_interval,
         "warm_up": warm_up}
    )  # fmt: skip
    if image_to_image and not source.family.image_to_image:
        raise InvalidRequestError(
            f"{source.model} is a {source.pipeline}, which has no image-to-image: leave it out"
        )
    if size is None:
        width, height = (
            Range(min=side, opt=side, max=side) for side in geometry.default_size(source)
        )
    else:
        width, height = size
    dynamic = not (width.fixed and height.fixed)
    if dynamic and not source.family.dynamic_size:
        raise InvalidRequestError(
            f"{source.model} is a {source.pipeline}, whose bundles have one size",
            "fix it, as ",
            Argument(
                "size", tuple(Range(min=s.opt, opt=s.opt, max=s.opt) for s in (width, height))
            ),
        )
    multiple = geometry.size_multiple(source, dynamic=dynamic)
    for name, side_range in (("width", width), ("height", height)):
        for value in (side_range.min, side_range.opt, side_range.max):
            if value % multiple:
                below = value // multiple * multiple
                near = f"{below} or {below + multiple}" if below else str(multiple)
                raise InvalidRequestError(
                    f"{name} {value} is not a multiple of {multiple}"
                    f"{', as a dynamic size must be' if dynamic else ''}: try {near}"
                )
    return BuildOptions(
        precision,
        Size(height=height, width=width, multiple=multiple),
        batch,
        gate,
        sp_interval,
        fi_interval,
        warm_up,
        source.guidance,
        image_to_image,
    )


def _check_method(values: Mapping[str, int]) -> None:
    """Refuse settings that make no step plan, for any number of steps."""
    for name, value in values.items():
        if fault := PARAMETERS[name].fault(value):
            raise InvalidRequestError(f"{name} {fault}", field=name)
    for name, least in AT_LEAST.items():
        if values[name] < values[least]:
            fault = at_least_fault(name, values[name], least, values[least])
            raise InvalidRequestError(fault, field=name)


def options_of(manifest: Manifest) -> BuildOptions:
    """Return the settings that a bundle was built with."""
    defaults = manifest.defaults
    return BuildOptions(
        manifest.precision,
        manifest.size,
        manifest.batch,
        defaults.gate_step,
        defaults.sp_interval,
        defaults.fi_interval,
        defaults.warm_up,
        manifest.guidance,
        "vae_encoder" in manifest.graphs and manifest.takes_prompt,
    )


def default_folder(source: ModelSource, options: BuildOptions) -> Path:
    """Return where a bundle goes that was given no folder.

    A size that is not the model's own has a folder of its own: graphs of one size are of no use
    for another, and neither are their plans.
    """
    size = options.size
    fixed = size.width.fixed and size.height.fixed
    if fixed and (size.width.opt, size.height.opt) == geometry.default_size(source):
        return Path("engines") / source.name
    label = f"{size.width}x{size.height}".replace(":", "_")
    return Path("engines") / f"{source.name}-{label}"


def build_key(source: ModelSource, record: Source, options: BuildOptions) -> str:
    """Hash everything that a bundle depends on: weights, settings, our code and its libraries."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "source": [record.kind, record.fingerprint],
        "precision": options.precision,
        "size": options.size.model_dump(),
        "batch": options.batch.model_dump(),
        "step_plan": [options.gate_step, options.sp_interval, options.fi_interval, options.warm_up],
        "guidance": options.guidance,
        "image_to_image": options.image_to_image,
        "code": code_sha256("build.assemble", family_module(source.family)),
        "versions": versions(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of this package and of those that take part in a build."""
    return {"tgate-export": tgate_export.__version__} | versions_of(_PACKAGES)
