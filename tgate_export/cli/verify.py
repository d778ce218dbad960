"""`tgate-export verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tgate_export.cli._console import RichProgress, print_json, require_export_extra, stdout

if TYPE_CHECKING:
    from tgate_export.export.verify import Difference
    from tgate_export.runtime.backends.base import RunPrecision


@click.command(name="verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--source", metavar="DIR", help="The pipeline's folder, if it has moved.")
@click.option(
    "--backend",
    help="Verify what this backend makes of the graphs; as for generate. Default: the graphs as "
    "they are written, on ONNX Runtime's CPU.",
)
@click.option(
    "--precision", type=click.Choice(["fp32", "bf16"]), help="As for generate, with its bounds."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
def command(
    bundle: Path,
    source: str | None,
    backend: str | None,
    precision: RunPrecision | None,
    as_json: bool,
) -> None:
    """Prove a bundle against PyTorch.

    Checks every file's hash, runs every graph beside its PyTorch module, and compares the final
    latents of whole runs across the gate. Exits 1 when a bound is broken.
    """
    require_export_extra()
    from tgate_export.export.verify import require, verify_bundle

    result = verify_bundle(bundle, source, RichProgress(), backend=backend, precision=precision)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "holds": all(difference.holds for difference in result.differences),
                "differences": [
                    asdict(difference) | {"holds": difference.holds}
                    for difference in result.differences
                ],
            }
        )
    else:
        _print_table(result.differences)
    require(result.differences)


def _print_table(differences: tuple[Difference, ...]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "tensor", "max abs", "relative", "allowed", "")
    for d in differences:
        verdict = Text("ok", "green") if d.holds else Text("BROKEN", "bold red")
        table.add_row(
            d.graph, d.tensor, f"{d.max_abs:.1e}", f"{d.relative:.1e}", f"{d.bound:.0e}", verdict
        )
    stdout().print(table)
