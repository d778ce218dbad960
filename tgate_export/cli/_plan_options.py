"""The options of `build` that concern TensorRT and TensorRT-RTX plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tgate_export.bundle.manifest import Range

if TYPE_CHECKING:
    from tgate_export.bundle.plans import Library
    from tgate_export.compile.request import PlanRequest

_OPTIONS = (
    click.option(
        "--optimization-level",
        type=click.IntRange(0, 5),
        help="How long TensorRT looks for fast kernels: 0 (least) to 5. Default: its own.",
    ),
    click.option(
        "--workspace",
        type=click.FloatRange(0, min_open=True),
        metavar="GIB",
        help="Scratch memory that a kernel may use. Default: all of the GPU.",
    ),
    click.option(
        "--timing-cache",
        type=click.Path(path_type=Path, dir_okay=False),
        help="File of kernel timings that is read and extended.",
    ),
    click.option(
        "--strip-weights",
        is_flag=True,
        help="Plans without weights, which are read from the bundle when a plan is loaded. "
        "Needs a GPU.",
    ),
    click.option(
        "--weight-streaming",
        is_flag=True,
        help="Plans whose weights may stay in host memory: generate --weight-streaming-budget.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="TensorRT plans that run on every GPU from Ampere on; slower.",
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="TensorRT plans that later versions run, too; slower.",
    ),
    click.option(
        "--keep-layer-info",
        is_flag=True,
        help="Keep every layer's details in the plans, for profilers.",
    ),
)


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def plan_requests(
    targets: tuple[str, ...],
    sm: tuple[str, ...],
    batch: Range | None,
    *,
    optimization_level: int | None,
    workspace: float | None,
    timing_cache: Path | None,
    strip_weights: bool,
    weight_streaming: bool,
    hardware_compatible: bool,
    version_compatible: bool,
    keep_layer_info: bool,
) -> list[PlanRequest]:
    """Return a request for each --target that needs plans.

    Raises:
        click.UsageError: options of plans without such a target, or what cannot be combined.
    """
    libraries = [target for target in dict.fromkeys(targets) if target != "onnx"]
    given = {
        "--sm": sm,
        "--optimization-level": optimization_level is not None,
        "--workspace": workspace,
        "--timing-cache": timing_cache,
        "--strip-weights": strip_weights,
        "--weight-streaming": weight_streaming,
        "--hardware-compatible": hardware_compatible,
        "--version-compatible": version_compatible,
        "--keep-layer-info": keep_layer_info,
    }
    if not libraries:
        for name, value in given.items():
            if value:
                raise click.UsageError(f"{name} needs --target tensorrt or --target tensorrt-rtx")
        return []
    if len(libraries) > 1:
        raise click.UsageError(
            "one build compiles with TensorRT or TensorRT-RTX: build twice, the graphs are kept"
        )
    from tgate_export.bundle.plans import PlanSettings
    from tgate_export.compile.request import DEFAULT_PLAN_BATCH, PlanRequest

    settings = PlanSettings(
        optimization_level=optimization_level,
        workspace_bytes=None if workspace is None else int(workspace * 2**30),
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        weights_stripped=strip_weights,
        weight_streaming=weight_streaming,
        layer_info=keep_layer_info,
    )
    return [
        PlanRequest(
            library=cast("Library", library),
            compute_capabilities=sm,
            batch=batch or DEFAULT_PLAN_BATCH,
            settings=settings,
            timing_cache=timing_cache,
        )
        for library in libraries
    ]
