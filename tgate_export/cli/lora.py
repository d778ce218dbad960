"""`tgate-export lora`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tgate_export.cli._console import (
    RichProgress,
    megabytes,
    next_commands,
    print_json,
    require_export_extra,
    stderr,
    stdout,
)
from tgate_export.cli._hints import on_command_line
from tgate_export.cli._types import BundlePath, LoraFile

if TYPE_CHECKING:
    from tgate_export.build.fuse_loras import FuseResult


@click.command(name="lora")
@click.argument("bundle", type=BundlePath())
@click.argument("loras", type=LoraFile(), nargs=-1, required=True, metavar="FILE[:SCALE]...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new bundle.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare with PyTorch before the new bundle appears. Needs the model, and the export "
    "extra.",
)
@click.option("--force", is_flag=True, help="Write even when up to date; replace foreign files.")
@click.option("--list", "as_list", is_flag=True, help="Every changed tensor on stdout.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
def command(
    bundle: Path,
    loras: tuple[tuple[str, float], ...],
    out: Path,
    verify: bool,
    force: bool,
    as_list: bool,
    as_json: bool,
) -> None:
    """Make a bundle with LoRA files in its weights, without a build.

    Takes seconds, and neither the model nor torch: FILE is a LoRA (.safetensors) for the bundle's
    model, SCALE what its change of the weights is multiplied by, 1 without. LoRA files that the
    bundle has stay in it. The new bundle is what build --lora would make; BUNDLE stays as it is.
    """
    if verify:
        require_export_extra()
    from tgate_export.build.fuse_loras import fuse_loras

    result = fuse_loras(bundle, loras, out=out, verify=verify, force=force, progress=RichProgress())
    if as_json:
        print_json(_json(result))
        return
    _report(result)
    if as_list:
        for tensor in result.changed:
            stdout().print(
                f"{tensor.component}  {tensor.layer}  {tensor.graph}  {tensor.tensor}  "
                f"{list(tensor.shape)}",
                soft_wrap=True,
            )


def _json(result: FuseResult) -> dict[str, Any]:
    return {
        "bundle": str(result.path),
        "up_to_date": result.up_to_date,
        "bytes": sum(file.bytes for file in result.manifest.files.values()),
        "seconds": round(result.seconds, 3),
        "loras": [lora.model_dump() for lora in result.manifest.source.loras],
        "changed": [
            {
                "component": tensor.component,
                "layer": tensor.layer,
                "graph": tensor.graph,
                "tensor": tensor.tensor,
                "shape": list(tensor.shape),
            }
            for tensor in result.changed
        ],
        "unread": [{"component": component, "layer": layer} for component, layer in result.unread],
        "stale_plans": list(result.stale_plans),
        "largest_relative_difference": max(
            (difference.relative for difference in result.differences), default=None
        ),
    }


def _report(result: FuseResult) -> None:
    console = stderr()
    size = megabytes(sum(file.bytes for file in result.manifest.files.values()))
    if result.up_to_date:
        console.print(f"{result.path} is up to date ({size}).", soft_wrap=True)
    else:
        layers = {(tensor.component, tensor.layer) for tensor in result.changed}
        counts = Counter(component for component, _ in sorted(layers))
        weights = ", ".join(f"{count} of {component}" for component, count in counts.items())
        console.print(
            f"Wrote {result.path} ({size}) in {result.seconds:.1f} s; weights of layers that "
            f"changed: {weights or 'none'}.",
            soft_wrap=True,
        )
    if result.unread:
        component, layer = result.unread[0]
        console.print(
            f"No graph reads {len(result.unread)} layers that the files change, such as {layer} of "
            f"{component}.",
            soft_wrap=True,
        )
    if result.differences:
        worst = max(result.differences, key=lambda difference: difference.relative)
        console.print(
            f"The largest difference from PyTorch is {worst.relative:.1e} ({worst.graph}, "
            f"{worst.tensor}).",
            soft_wrap=True,
        )
    for plans, again in result.stale_plans.items():
        console.print(
            f"plans/{plans} has no plans of what changed; to compile them: "
            f"{on_command_line(again)}",
            soft_wrap=True,
        )
    next_commands(
        "Next", ["tgate-export", "generate", result.path, "--prompt", "a watercolour fox"],
        ["tgate-export", "inspect", result.path],
    )  # fmt: skip
