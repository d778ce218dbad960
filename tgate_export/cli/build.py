"""`tgate-export build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from tgate_export.cli._console import (
    RichProgress,
    megabytes,
    next_commands,
    parse_range,
    parse_size,
    print_json,
    require_export_extra,
    stderr,
)
from tgate_export.cli._file_options import file_options
from tgate_export.cli._plan_options import plan_options, plan_requests
from tgate_export.cli._types import Model
from tgate_export.parameters import SYNTAXES

if TYPE_CHECKING:
    from tgate_export.build.build import BuildResult


@click.command(name="build")
@click.option(
    "--model",
    type=Model(),
    required=True,
    metavar="NAME|DIR|FILE|HF_ID",
    help="A name from `tgate-export models`, a diffusers folder, a checkpoint in one .safetensors "
    "file, or a Hugging Face id, which may end with @ and a revision.",
)
@file_options
@click.option(
    "--weights",
    type=click.Choice(["pretrained", "random"]),
    default="pretrained",
    show_default=True,
    help="random: the exact architecture, for timing without a download.",
)
@click.option(
    "--target",
    type=click.Choice(["onnx", "tensorrt", "tensorrt-rtx"]),
    multiple=True,
    default=["onnx"],
    show_default=True,
    help="What to compile to; ONNX graphs are always made. tensorrt needs the GPU that is to run "
    "the plans, tensorrt-rtx none (see --sm). Repeat for several.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of weights and computation.",
)
@click.option(
    "--size",
    metavar="WxH",
    help="Image size in pixels (N is NxN), or WxH:WxH:WxH (smallest, usual, "
    "largest) for a dynamic size. Default: the model's own.",
)
@click.option(
    "--batch",
    metavar="MIN:OPT:MAX",
    help="Images in one call; a single number fixes it. Default: graphs for 1:1:8, plans for 1.",
)
@click.option(
    "--sm",
    multiple=True,
    metavar="X.Y",
    help="Compute capability of a GPU to compile TensorRT-RTX plans for, such as 8.9; repeat for "
    "several. Default: the GPU of this machine.",
)
@click.option(
    "--gate-step",
    type=int,
    help="Default gate step of the bundle. "
    "Steps 0..N-1 compute cross-attention and guidance, the others reuse them.",
)
@plan_options
@click.option(
    "--sp-interval",
    type=int,
    default=1,
    show_default=True,
    help="Default of the bundle. Above 1, it gets a graph for steps before the gate that reuse "
    "self-attention; generate may then use any interval.",
)
@click.option(
    "--fi-interval",
    type=int,
    default=1,
    show_default=True,
    help="Default of the bundle. Above 1, it gets a graph for steps from the gate on that reuse "
    "self-attention; generate may then use any interval.",
)
@click.option(
    "--warm-up",
    type=int,
    default=0,
    show_default=True,
    help="Default of the bundle: steps 0..N never reuse self-attention.",
)
@click.option(
    "--cache-blend",
    type=float,
    help="Default of the bundle, 0 to 2: how much of the conditional pass of guidance is in what "
    "gated steps reuse. Default: the model's own, 0.5 (the official method) unless measured.",
)
@click.option(
    "--guidance-carry",
    type=float,
    help="Default of the bundle, 0 to 2: how much guidance gated steps add. Default: the model's "
    "own, 0 (the official method) unless measured.",
)
@click.option(
    "--guidance",
    type=click.Choice(["classifier-free", "none"]),
    help="none: one pass a step, for models distilled to need no guidance (turbo). "
    "Default: the model's own.",
)
@click.option(
    "--image-to-image",
    is_flag=True,
    help="Let runs begin with an image (generate --image): adds the VAE's encoder.",
)
@click.option(
    "--vae-tile",
    type=click.IntRange(min=0),
    metavar="PIXELS",
    help="Decode larger images in overlapping tiles with sides of so many pixels, in bounded "
    "memory; 0 for whole images. Default: whole up to 1024 pixels, tiles of 512 beyond.",
)
@click.option(
    "--prompt-chunks",
    type=int,
    default=1,
    show_default=True,
    metavar="N",
    help="How many times the text encoder's 77 tokens a prompt in A1111's syntax can have. More "
    "make every step before the gate dearer, whatever the prompt (docs/prompts.md).",
)
@click.option(
    "--prompt-syntax",
    type=click.Choice(SYNTAXES),
    help="Default of the bundle: how generate reads prompts that say nothing of it. "
    "Default: plain.",
)
@click.option(
    "--samplers",
    metavar="all|NAME,...",
    help="Samplers to compile besides those that every bundle has, such as heun,dpm++2m-sde. "
    "generate compiles others when they are first asked for.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle. "
    "Default: engines/NAME, or engines/NAME-WxH for a size that is not the model's own.",
)
@click.option("--force", is_flag=True, help="Build even when up to date; replace foreign files.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout.")
def command(
    model: str,
    config: str | None,
    vae: str | None,
    loras: tuple[tuple[str, float], ...],
    embeddings: tuple[tuple[str, str | None], ...],
    weights: str,
    target: tuple[str, ...],
    precision: str,
    size: str | None,
    batch: str | None,
    sm: tuple[str, ...],
    gate_step: int | None,
    sp_interval: int,
    fi_interval: int,
    warm_up: int,
    cache_blend: float | None,
    guidance_carry: float | None,
    guidance: str | None,
    image_to_image: bool,
    vae_tile: int | None,
    samplers: str | None,
    prompt_chunks: int,
    prompt_syntax: str | None,
    out: Path | None,
    force: bool,
    as_json: bool,
    **plan_settings: Any,
) -> None:
    """Compile a diffusers pipeline into a bundle.

    Exports the two denoiser graphs (full and gated), the text encoder and the VAE decoder, compiles
    the samplers, and compares every graph with PyTorch before the bundle appears in its folder.
    With --target tensorrt or tensorrt-rtx every graph is then compiled to a plan.
    A second build of the same thing does nothing, and one of other defaults exports nothing: graphs
    are kept in the user's cache (tgate-export cache).
    """
    ranges = parse_size(size) if size else None
    batch_range = parse_range(batch, "--batch") if batch else None
    plans = plan_requests(target, sm, batch_range, **plan_settings)
    require_export_extra()
    from tgate_export.build.build import build_bundle

    result = build_bundle(
        model,
        weights=cast(Literal["pretrained", "random"], weights),
        config=config,
        vae=vae,
        loras=loras,
        embeddings=embeddings,
        precision=cast(Literal["fp32", "fp16"], precision),
        size=ranges,
        batch=batch_range,
        gate_step=gate_step,
        plans=plans,
        sp_interval=sp_interval,
        fi_interval=fi_interval,
        warm_up=warm_up,
        cache_blend=cache_blend,
        guidance_carry=guidance_carry,
        guidance=cast(Literal["classifier-free", "none"] | None, guidance),
        image_to_image=image_to_image,
        vae_tile=vae_tile,
        samplers=samplers,
        prompt_chunks=prompt_chunks,
        prompt_syntax=prompt_syntax,
        out=out,
        force=force,
        progress=RichProgress(),
    )
    _report(result, as_json)


def report_bundle(result: BuildResult) -> None:
    """Say what became of a build."""
    size = megabytes(_bytes(result))
    if result.up_to_date:
        stderr().print(f"{result.path} is up to date ({size}).", soft_wrap=True)
        return
    worst = max(result.differences, key=lambda difference: difference.relative)
    stderr().print(
        f"Built {result.path} ({size}); the largest difference from PyTorch is "
        f"{worst.relative:.1e} ({worst.graph}, {worst.tensor}).",
        soft_wrap=True,
    )


def _bytes(result: BuildResult) -> int:
    return sum(file.bytes for file in result.manifest.files.values())


def _report(result: BuildResult, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "bundle": str(result.path),
                "up_to_date": result.up_to_date,
                "bytes": _bytes(result),
                "largest_relative_difference": max(
                    (difference.relative for difference in result.differences), default=None
                ),
                "plans": [
                    {
                        "path": str(plans.path),
                        "bytes": plans.bytes,
                        "compiled": plans.compiled,
                        "reused": plans.reused,
                    }
                    for plans in result.plans
                ],
            }
        )
        return
    console = stderr()
    report_bundle(result)
    for plans in result.plans:
        done = f"compiled {', '.join(plans.compiled)}" if plans.compiled else "plans are up to date"
        console.print(f"{plans.path} ({megabytes(plans.bytes)}): {done}.", soft_wrap=True)
    video = result.manifest.latents.video
    what = (
        ["--image", "FILE", "--out", "x.webp"]
        if video
        else ["--prompt", "a red circle on a blue background"]
    )
    next_commands(
        "Next", ["tgate-export", "generate", result.path, *what],
        ["tgate-export", "inspect", result.path],
    )  # fmt: skip
