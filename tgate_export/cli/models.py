"""`tgate-export models`."""

from __future__ import annotations

import click

from tgate_export.cli._console import megabytes, print_json


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
def command(as_json: bool) -> None:
    """List the models that build accepts by name.

    Besides these, build takes any diffusers folder or Hugging Face id of a Stable Diffusion 1.x,
    2.x or XL pipeline, of PixArt-alpha or PixArt-Sigma, or of Stable Video Diffusion, and
    checkpoints of Stable Diffusion and XL in one .safetensors file.
    """
    from tgate_export.build.estimate import estimate_named
    from tgate_export.families.names import NAMED_MODELS

    needs = {name: estimate_named(model) for name, model in NAMED_MODELS.items()}
    rows = [
        {
            "name": model.name,
            "family": model.family,
            "summary": model.summary,
            "hugging_face": model.hub_id,
            "denoiser_parameters": model.denoiser_parameters,
            "parameters": dict(model.parameters),
            "build": {
                "download_bytes": build.bytes if model.hub_id else 0,
                "bundle_bytes": build.bytes,
                "memory_bytes": memory,
                "minutes": build.minutes,
            },
            "size": "{}x{}".format(*model.size),
            "defaults": model.defaults.model_dump(),
            "origin": model.origin,
        }
        for model in NAMED_MODELS.values()
        for build, memory in [needs[model.name]]
    ]
    if as_json:
        print_json(rows)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    numbers = (Column(title, justify="right") for title in ("size", "steps", "gate", "guidance"))
    # 60 columns wide with the longest name.
    table = Table("name", *numbers, "sampler", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for model in NAMED_MODELS.values():
        defaults = model.defaults
        table.add_row(
            model.name,
            "{}x{}".format(*model.size),
            str(defaults.num_inference_steps),
            str(defaults.gate_step),
            "none" if model.guidance == "none" else f"{defaults.guidance_scale:g}",
            defaults.scheduler,
        )
    numbers = (Column(title, justify="right") for title in ("download", "bundle", "memory"))
    # As wide.
    costs = Table(
        "to build", *numbers, Column("minutes", justify="right"),
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False,
    )  # fmt: skip
    for model in NAMED_MODELS.values():
        build, memory = needs[model.name]
        costs.add_row(
            model.name,
            megabytes(build.bytes) if model.hub_id else "none",
            megabytes(build.bytes),
            megabytes(memory),
            str(build.minutes),
        )
    console = Console(highlight=False)
    for part in (table, costs):
        console.print(part)
        console.print()
    console.print(
        "To build is in fp32, on two cores, where nothing is in the caches: about. In fp16 a "
        "bundle is half as large.\n"
    )
    for model in NAMED_MODELS.values():
        console.print(
            f"[bold]{model.name}[/]: {model.summary}; {model.denoiser_parameters / 1e6:.2f} M "
            f"parameters. Defaults: {model.origin}."
        )
