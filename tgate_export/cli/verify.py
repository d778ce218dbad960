"""`tgate-export verify`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tgate_export.cli._backend_options import BACKENDS, BackendOption, RunOption
from tgate_export.cli._console import RichProgress, print_json, require_export_extra, stdout
from tgate_export.cli._types import BackendName, BundlePath

if TYPE_CHECKING:
    from tgate_export.runtime.backends.base import RunPrecision
    from tgate_export.verify.differences import Difference


@click.command(name="verify")
@click.argument("bundle", type=BundlePath())
@click.option("--source", metavar="DIR|FILE", help="The model's folder or file, if it has moved.")
@click.option(
    "--download",
    is_flag=True,
    help="Fetch the model that the bundle names from Hugging Face, if it is not in the cache.",
)
@click.option(
    "--backend",
    cls=BackendOption,
    type=BackendName(),
    help=f"Verify what this backend makes of the graphs: {BACKENDS}. Default: the graphs as they "
    "are written, on ONNX Runtime's CPU.",
)
@click.option(
    "--precision",
    cls=RunOption,
    type=click.Choice(["fp32", "bf16"]),
    help="Bounds are those of the precision.",
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
def command(
    bundle: Path,
    source: str | None,
    download: bool,
    backend: str | None,
    precision: RunPrecision | None,
    as_json: bool,
) -> None:
    """Prove a bundle against PyTorch.

    Checks every file's hash, runs every graph beside its PyTorch module, and compares the final
    latents of whole runs across the gate. Exits 1 when a bound is broken.
    """
    require_export_extra()
    from tgate_export.build.verify_bundle import verify_bundle
    from tgate_export.verify.differences import require

    result = verify_bundle(
        bundle,
        source,
        RichProgress(),
        backend=backend,
        precision=precision,
        download=download,
    )
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
