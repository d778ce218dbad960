"""`tgate-export generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tgate_export.cli._backend_options import RunOption, backend_option, backend_options
from tgate_export.cli._bulk import BulkOptions, bulk_options, generate_all
from tgate_export.cli._console import (
    parse_size,
    print_json,
    readable_warnings,
    spinner,
    stderr,
)
from tgate_export.cli._hires import HIRES_OPTIONS
from tgate_export.cli._parameters import further_parameters, parameter_options, recorded, reported
from tgate_export.cli._refiner import REFINER_OPTIONS, Ending, Refiner
from tgate_export.cli._step_bar import StepBar
from tgate_export.cli._types import BundlePath
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.user_cache import write_whole

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Manifest
    from tgate_export.runtime.backends.base import Backend, RunPrecision
    from tgate_export.runtime.pipeline import PipelineOutput

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_VIDEOS = (".gif", ".webp", ".png")
_NO_HIRES = "1"  # leaves out the second pass of a picture that is made again


F = TypeVar("F", bound=Callable[..., Any])


def generate_options(function: F) -> F:
    """Give a command the options of `generate`, which are the arguments of the function."""
    budget = click.option(
        "--weight-streaming-budget",
        type=click.FloatRange(min=0),
        metavar="GIB",
        help="Weights of each plan that may stay on the GPU; for plans built with "
        "--weight-streaming. Default: all.",
    )
    out = click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=Path("x.png"),
        show_default=True,
        help="Picture to write, or with .gif, .webp or .png a video; several get -0, -1, ... "
        "before the suffix, with as many digits as the last. The file says how it was made.",
    )
    options: list[Callable[[F], F]] = [
        click.option("--prompt", help="What to show; a video is made from --image alone."),
        click.option("--negative-prompt", help="What to avoid."),
        parameter_options,
        click.option("--seed", type=int, help="Same seed, same picture. Default: random."),
        click.option("--num-images", type=int, default=1, show_default=True),
        click.option("--size", metavar="WxH", help="For a bundle with a dynamic size; N is NxN."),
        *HIRES_OPTIONS,
        *REFINER_OPTIONS,
        backend_option,
        click.option("--precision", cls=RunOption, type=click.Choice(["fp32", "bf16"])),
        click.option("--threads", cls=RunOption, type=click.IntRange(min=1)),
        click.option(
            "--no-cuda-graphs", is_flag=True, help="Enqueue every launch anew. For debugging."
        ),
        budget,
        out,
        click.option("--json", "as_json", is_flag=True, help="Machine-readable result on stdout."),
    ]
    for decorate in reversed(options):
        function = decorate(function)
    return function


@click.command(name="generate")
@click.argument("bundle", type=BundlePath())
@bulk_options
@generate_options
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    metavar="FILE.png",
    help="Make the picture of a PNG again, which says how it was made; what is given beside it is "
    "changed.",
)
def command(bundle: Path, bulk: BulkOptions, source: Path | None, **options: Any) -> None:
    """Generate images with a bundle: full graph before the gate step, gated graph from it on.

    What is not given is the bundle's default. --sp-interval, --fi-interval and --warm-up are those
    of the T-GATE package. --prompts makes an image for every line of a file.
    """
    if bulk.given(options):
        if source is not None:
            raise click.UsageError("--from is for one picture, and --prompts for many")
        generate_all(bundle, bulk, **options)
    else:
        generate(bundle, source=source, **options)


def generate(
    bundle: Path,
    *,
    prompt: str | None,
    negative_prompt: str | None,
    seed: int | None,
    num_images: int,
    size: str | None,
    backend: str,
    precision: RunPrecision | None,
    threads: int | None,
    no_cuda_graphs: bool,
    weight_streaming_budget: float | None,
    out: Path,
    as_json: bool,
    further: tuple[str, ...],
    source: Path | None = None,
    refiner: Path | None = None,
    refiner_start: float | None = None,
    **parameters: Any,
) -> None:
    """Generate with a bundle, write the files, and report; see the command's options."""
    check_writable(out)
    width, height = (side.opt for side in parse_size(size)) if size else (None, None)
    from tgate_export.bundle.integrity import read_manifest
    from tgate_export.runtime.picture_record import read_record
    from tgate_export.runtime.pipeline import TGatePipeline
    from tgate_export.runtime.request import make_request

    manifest = read_manifest(bundle)
    others = further_parameters(manifest, further)
    record = None if source is None else read_record(source)
    second = Refiner.of(refiner, refiner_start, manifest.latents, record)
    if source is not None and record is not None:
        prompt = record.prompt if prompt is None else prompt
        negative_prompt = record.negative_prompt if negative_prompt is None else negative_prompt
        seed = record.seed if seed is None else seed
        width, height = width or record.width, height or record.height
        others = recorded(manifest, record, parameters, others, source)
        hires = record.hires
        if parameters["hires"] == _NO_HIRES:
            hires, parameters["hires"] = {}, None
        more = {**hires, **record.refiner.get("parameters", {})}
        parameters |= {n: v for n, v in more.items() if parameters.get(n) is None}
    check_given(out, prompt, parameters["image"], video=manifest.latents.video)
    check_beginning(parameters["image"], refines=manifest.refines)
    options = backend_options(no_cuda_graphs, weight_streaming_budget, precision, threads)
    with readable_warnings():
        with spinner("loading"):
            pipeline = TGatePipeline.from_bundle(bundle, backend, options=options)
        given = {name: value for name, value in parameters.items() if value is not None}
        given |= others
        call: dict[str, Any] = {
            "prompt": prompt, "negative_prompt": negative_prompt, "seed": seed,
            "num_images_per_prompt": num_images, "width": width, "height": height,
        }  # fmt: skip
        ending: Ending | None = None
        if second is not None:
            of_base = second.of_base(given, manifest)
            call |= {"denoising_end": second.start, "output_type": "latent"}
            begins = make_request(manifest, **call, **of_base)
            call["seed"] = begins.seed
            with spinner("loading the refiner"):
                ending = second.ready(begins, manifest, given, negative_prompt, backend, options)
            given = of_base
        with StepBar() as bar:
            output = pipeline(**call, parameters=given, callback_on_step_end=bar.update)
            if ending is not None:
                output = ending.refined(output, bar.update)
    files, replaced = _save(manifest, output, out)
    if replaced:
        names = ", ".join(map(str, replaced))
        stderr().print(f"note: {names} was there and is replaced", soft_wrap=True)
    if backend == "auto" and not as_json:
        stderr().print(
            f"Backend {pipeline.backend.name}: {pipeline.backend.reason}", soft_wrap=True
        )
    _report(manifest, output, files, pipeline.backend, as_json)


def check_writable(out: Path) -> None:
    """Find out before loading and not after."""
    if out.suffix.lower() not in {*_PICTURES, *_VIDEOS}:
        raise InvalidRequestError(
            f"--out {out} must end in .png, .jpg or .webp, for a video in .gif, .webp or .png"
        )
    if not out.parent.is_dir():
        raise InvalidRequestError(f"--out {out}: the folder {out.parent} does not exist")


def check_given(out: Path, prompt: str | None, image: Path | None, *, video: bool) -> None:
    """Refuse a call that is not one for a model of pictures, or of videos, which have no prompt.

    Raises:
        click.UsageError: what is missing.
        InvalidRequestError: the file's name ends in another format.
    """
    suffixes = _VIDEOS if video else _PICTURES
    if out.suffix.lower() not in suffixes:
        kind = "a video" if video else "a picture"
        raise InvalidRequestError(f"--out {out}: {kind} must end in {', '.join(suffixes)}")
    if video and image is None:
        raise click.UsageError("--image is missing: the file that the video is made from")
    if not video and prompt is None:
        raise click.UsageError('--prompt is missing: what to show, such as --prompt "a red circle"')


def check_beginning(image: Path | None, *, refines: bool) -> None:
    """Refuse a run of a refiner that begins with nothing.

    Raises:
        click.UsageError: says what to give.
    """
    if refines and image is None:
        raise click.UsageError(
            "a refiner goes on from a picture: give --image, or name it as --refiner of the bundle "
            "that begins"
        )


def _save(manifest: Manifest, output: PipelineOutput, out: Path) -> tuple[list[Path], list[Path]]:
    """Encode pictures and write them: what was there stays when that fails.

    Return the files, and those of them that were there.
    """
    from PIL import Image

    from tgate_export.runtime.picture_file import encode_picture, encode_video

    number = len(output.images)
    digits = len(str(number - 1))
    files = [
        out if number == 1 else out.with_stem(f"{out.stem}-{index:0{digits}}")
        for index in range(number)
    ]
    replaced = [file for file in files if file.is_file()]
    kind = Image.registered_extensions()[out.suffix.lower()]
    encode: Callable[..., bytes] = encode_video if manifest.latents.video else encode_picture
    for index, (image, file) in enumerate(zip(output.images, files, strict=True)):
        try:
            write_whole(file, encode(image, kind, manifest, output.request, index))
        except OSError as error:
            raise TGateError(f"cannot write {file}: {error.strerror or error}") from error
    return files, replaced


def _report(
    manifest: Manifest, output: PipelineOutput, files: list[Path], backend: Backend, as_json: bool
) -> None:
    request, timings = output.request, output.timings
    if as_json:
        memory = backend.memory_report()
        print_json(
            {
                "images": [str(file) for file in files],
                "backend": backend.name,
                "backend_reason": backend.reason,
                "device_memory": memory.as_dict() if memory else None,
                "seed": request.seed,
                **reported(manifest, request),
                "width": request.width,
                "height": request.height,
                "hires": request.hires.as_dict() if request.hires else None,
                "refiner": asdict(request.refined) if request.refined else None,
                "timings": timings.as_dict(),
            }
        )
        return
    phases = timings.as_dict()["phases"]
    parts = [
        f"{entry['evaluations']} {name.replace('_', ' ')} steps of "
        f"{1e3 * entry['seconds'] / entry['evaluations']:.0f} ms"
        for name, entry in phases.items()
        if entry["evaluations"]
    ]
    stderr().print(
        f"Wrote {', '.join(str(file) for file in files)} (seed {request.seed}, {backend.name}): "
        f"{timings.total:.2f} s, {' and '.join(parts)}",
        soft_wrap=True,
    )
