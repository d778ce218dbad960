"""`tgate-export embed triton`."""

from __future__ import annotations

from pathlib import Path

import click

from tgate_export.cli._backend_options import backend_option
from tgate_export.cli._batching_options import batching_options, max_images_option
from tgate_export.cli._console import next_commands, spinner
from tgate_export.cli._types import BundlePath


@click.command(name="triton")
@click.argument("bundle", type=BundlePath())
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Model repository; models of other names in it are left alone.",
)
@click.option("--name", help="Of the model. Default: the bundle's.")
@backend_option
@click.option(
    "--gpu",
    "gpus",
    type=click.IntRange(min=0),
    multiple=True,
    help="An instance for this GPU; repeat it for several. Default: one for each GPU that the "
    "server has, or one on the CPU.",
)
@batching_options
@max_images_option(64)
@click.option(
    "--execution-env",
    metavar="PATH",
    help="Python environment for the model: a folder, or an archive that conda-pack wrote; may "
    "begin with $$TRITON_MODEL_DIRECTORY/. Default: that of the server.",
)
@click.option("--copy", is_flag=True, help="Copy the bundle's files instead of hard-linking them.")
def command(
    bundle: Path,
    out: Path,
    name: str | None,
    backend: str,
    gpus: tuple[int, ...],
    max_batch: int | None,
    max_in_flight: int | None,
    max_pending: int,
    call_target: float | None,
    max_images: int,
    execution_env: str | None,
    copy: bool,
) -> None:
    """Write a model repository that a stock tritonserver loads.

    The server's Python needs this package with a backend, such as tgate-export[cpu]; see
    docs/embed-triton.md. Requests at different denoising steps share engine calls.
    """
    from tgate_export.embed.triton.repository import ServingOptions, write_repository

    options = ServingOptions(
        backend=backend,
        gpus=gpus,
        execution_env=execution_env,
        max_batch=max_batch,
        max_in_flight=max_in_flight,
        max_pending=max_pending,
        call_target=call_target,
        max_images=max_images,
    )
    with spinner("writing the repository"):
        model = write_repository(bundle, out, options, name=name, copy=copy)
    local = ["--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"]
    next_commands(
        f"Wrote {model}. Next",
        ["tritonserver", "--model-repository", model.parent, *local],
    )
