"""`tgate-export generate --prompts`: an image for every line of a file."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tgate_export.cli._backend_options import backend_options
from tgate_export.cli._bulk_progress import BulkProgress
from tgate_export.cli._console import (
    parse_size,
    print_json,
    readable_warnings,
    spinner,
    stderr,
)
from tgate_export.cli._parameters import further_parameters
from tgate_export.common.errors import InvalidRequestError, TGateError

if TYPE_CHECKING:
    from tgate_export.bulk.run import Runner, Tally
    from tgate_export.bulk.settings import BulkSettings
    from tgate_export.bundle.manifest import Manifest
    from tgate_export.runtime.backends.base import RunPrecision

_OPTIONS = (
    click.option(
        "--prompts",
        type=click.Path(path_type=Path),
        help="File of a JSON object a line, each of which makes an image in the folder --out; what "
        "is there already is not made again. Options are what a line without them has; --seed is "
        "0 by default, and the number of a line is added.",
    ),
    click.option(
        "--format",
        "kind",
        type=click.Choice(["png", "jpeg", "webp", "gif"]),
        help="Of --prompts: the files' format. Default: png, for videos webp.",
    ),
    click.option(
        "--image-folder",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Of --prompts: folder of the pictures that lines name. Default: that of the file.",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(min=1),
        help="Of --prompts: images in one engine call. Default: the bundle's largest batch.",
    ),
    click.option(
        "--ray",
        is_flag=False,
        flag_value="",
        metavar="[ADDRESS]",
        help="Of --prompts: generate on the Ray cluster of that address, or on one that is started "
        "on this machine.",
    ),
    click.option(
        "--ray-actors",
        type=click.IntRange(min=1),
        help="Processes that generate. Default: one a GPU, or without GPUs one a CPU socket.",
    ),
)


@dataclass(frozen=True)
class BulkOptions:
    """What is given with --prompts."""

    prompts: Path | None
    kind: str | None
    image_folder: Path | None
    max_batch: int | None
    ray: str | None
    ray_actors: int | None

    def given(self, options: Mapping[str, Any]) -> bool:
        """Return whether there is a file of prompts.

        Args:
            options: the command's other ones.

        Raises:
            click.UsageError: an option has no effect beside the others.
        """
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if self.prompts is None:
            if given:
                name = "format" if given[0] == "kind" else given[0].replace("_", "-")
                raise click.UsageError(f"--{name} is for --prompts FILE")
            return False
        for name in ("refiner", "refiner_start"):
            if options[name] is not None:
                raise click.UsageError("--refiner is for --prompt, not for --prompts")
        if options["prompt"] is not None:
            raise click.UsageError("give either --prompt or --prompts, not both")
        if options["num_images"] != 1:
            raise click.UsageError(
                "--num-images is for --prompt: with --prompts a line makes an image, write it as "
                "often as you want one, with seeds of their own"
            )
        if self.ray is None and self.ray_actors is not None:
            raise click.UsageError("--ray-actors is for --ray")
        return True


def bulk_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command; it gets them as `bulk`."""

    @functools.wraps(function)
    def command(**arguments: Any) -> Any:
        own = {field.name: arguments.pop(field.name) for field in fields(BulkOptions)}
        return function(bulk=BulkOptions(**own), **arguments)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def generate_all(
    bundle: Path,
    bulk: BulkOptions,
    *,
    prompt: None,
    num_images: int,
    seed: int | None,
    size: str | None,
    backend: str,
    precision: RunPrecision | None,
    threads: int | None,
    no_cuda_graphs: bool,
    weight_streaming_budget: float | None,
    out: Path,
    as_json: bool,
    further: Iterable[str],
    refiner: None,
    refiner_start: None,
    **arguments: Any,
) -> None:
    """Generate an image for every line of the file of prompts; see the command's options.

    Raises:
        TGateError: some lines failed, or it cannot go on.
    """
    del prompt, num_images, refiner, refiner_start  # refused
    source = click.get_current_context().get_parameter_source("out")
    if source is ParameterSource.DEFAULT:
        raise click.UsageError("--out is missing: the folder for the images of --prompts")
    width, height = (side.opt for side in parse_size(size)) if size else (None, None)
    from tgate_export.bulk.run import run_bulk
    from tgate_export.bulk.settings import BulkSettings
    from tgate_export.bundle.integrity import open_bundle

    assert bulk.prompts is not None
    with spinner("checking the bundle"):
        opened = open_bundle(bundle, cache_hashes=True)
    arguments |= {"width": width, "height": height}
    arguments |= further_parameters(opened.manifest, further)
    prompts = bulk.prompts.absolute()
    settings = BulkSettings(
        bundle=opened.path,
        prompts=prompts,
        image_folder=(bulk.image_folder or prompts.parent).absolute(),
        out=out.absolute(),
        defaults={name: value for name, value in arguments.items() if value is not None},
        seed=seed or 0,
        kind=_kind(bulk.kind, opened.manifest),
        backend=backend,
        backend_options=backend_options(
            no_cuda_graphs, weight_streaming_budget, precision, threads
        ),
        max_batch=bulk.max_batch,
    )
    began = time.monotonic()
    with readable_warnings(), _runner(bulk) as runner, BulkProgress() as progress:
        try:
            tally = run_bulk(settings, opened, runner, progress.report)
        except (KeyboardInterrupt, SystemExit):
            progress.interrupted()
            raise
    _report(settings, tally, time.monotonic() - began, as_json)


def _runner(bulk: BulkOptions) -> contextlib.AbstractContextManager[Runner]:
    if bulk.ray is None:
        from tgate_export.bulk.local import LocalRunner

        return contextlib.nullcontext(LocalRunner())
    from tgate_export.bulk.ray_runner import RayRunner

    return RayRunner(bulk.ray, bulk.ray_actors)


def _kind(chosen: str | None, manifest: Manifest) -> str:
    """Return what Pillow calls a format."""
    from tgate_export.bulk.settings import PICTURES, VIDEOS

    known = VIDEOS if manifest.latents.video else PICTURES
    kind = chosen.upper() if chosen else next(iter(known))
    if kind not in known:
        what = "a video" if manifest.latents.video else "a picture"
        raise InvalidRequestError(
            f"--format {chosen}: {what} can be {', '.join(map(str.lower, known))}"
        )
    return kind


def _report(settings: BulkSettings, tally: Tally, seconds: float, as_json: bool) -> None:
    from tgate_export.bulk.output_folder import FAILURES, IMAGES

    failures = settings.out / FAILURES
    if as_json:
        print_json(
            {
                "out": str(settings.out),
                "images": tally.before + tally.made,
                "made": tally.made,
                "failed": tally.failed,
                "with_a_part_of_the_prompt_left_out": tally.warned,
                "manifest": str(settings.out / IMAGES),
                "failures": str(failures) if tally.failed else None,
                "backend": tally.backend,
                "seconds": round(seconds, 3),
            }
        )
    elif tally.made or not tally.failed:
        stderr().print(
            f"{tally.made:,} images in {settings.out} ({tally.backend}, {seconds:.1f} s); "
            f"{IMAGES} there says how each was made",
            soft_wrap=True,
        )
    if tally.warned and not as_json:
        stderr().print(
            f"of {tally.warned:,} a part of the prompt did not fit the text encoder: see their "
            f"warnings in {IMAGES}"
        )
    if tally.failed:
        raise TGateError(
            f"{tally.failed:,} of {tally.lines:,} lines failed: {failures} says why, and the same "
            "command tries them again"
        )
