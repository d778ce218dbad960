"""`tgate-export run`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tgate_export.cli._console import (
    RichProgress,
    megabytes,
    parse_size,
    require_export_extra,
    stderr,
)
from tgate_export.cli._file_options import file_options
from tgate_export.cli._hints import on_command_line
from tgate_export.cli._parameters import check_declared
from tgate_export.cli._refiner import Refiner
from tgate_export.cli._types import BundlePath, ModelOrBundle, is_bundle
from tgate_export.cli.generate import (
    check_beginning,
    check_given,
    check_writable,
    generate,
    generate_options,
)
from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.common.hints import Argument, Build, Call

if TYPE_CHECKING:
    from tgate_export.bundle.integrity import Bundle
    from tgate_export.bundle.manifest import Latents, Range
    from tgate_export.families.reference import Reference
    from tgate_export.families.source import ModelSource


@click.command(name="run")
@click.argument("model", type=ModelOrBundle(), metavar="NAME|DIR|FILE|HF_ID|BUNDLE")
@file_options
@generate_options
@click.option(
    "--bundle",
    type=click.Path(path_type=Path),
    help="Folder of the model's bundle. "
    "Default: engines/NAME, or engines/NAME-WxH for a size that is not the model's own.",
)
def command(
    model: str,
    bundle: Path | None,
    config: str | None,
    vae: str | None,
    loras: tuple[tuple[str, float], ...],
    embeddings: tuple[tuple[str, str | None], ...],
    **options: Any,
) -> None:
    """Generate images in one command, with a model or its bundle.

    MODEL is a name from `tgate-export models`, a diffusers folder, a checkpoint in one .safetensors
    file, a Hugging Face id, or a bundle.
    What is not built is built first, once, as `tgate-export build` does: in fp32, for the model's
    own size or --size, with image-to-image where --image or --hires-upscaler lanczos is given. A
    bundle that is there is used, however and by whichever version it was built, and built again
    when the model's files changed.
    """
    given: dict[str, Any] = {
        "config": config, "vae": vae, "loras": loras or None, "embeddings": embeddings or None,
    }  # fmt: skip
    of_file = {name: value for name, value in given.items() if value is not None}
    generate(_bundle(model, bundle, of_file, options), **options)


def _bundle(
    model: str, folder: Path | None, of_file: dict[str, Any], options: dict[str, Any]
) -> Path:
    """Return the bundle to generate with; build it if there is none.

    Args:
        model: what was asked for.
        folder: of the bundle.
        of_file: `config` and `vae` of a checkpoint in one file, `loras` and `embeddings`, those
            that were given.
        options: of `generate`.
    """
    given = _given_bundle(model)
    if given is not None:
        if folder is not None:
            raise click.UsageError(f"--bundle is for a model, and {model} is a bundle already")
        for name in of_file:
            option = on_command_line(Argument(name))
            what = f"{option} is for a model, and {model} is a bundle already"
            if name == "loras":
                what += f": `tgate-export lora {shlex.quote(model)}` makes one with it"
            raise click.UsageError(what)
        return given
    # What is wrong with a call is found before a build of minutes, where it can be.
    check_writable(options["out"])
    if options["prompt"] is None and options["image"] is None:
        raise click.UsageError('--prompt is missing: what to show, such as --prompt "a red circle"')
    check_declared(options)
    if options["image"] is not None and not options["image"].is_file():
        raise InvalidRequestError(f"image {options['image']} does not exist")
    size = parse_size(options["size"]) if options["size"] else None
    from tgate_export.build.existing import find_bundle, is_of_same_files
    from tgate_export.families.reference import reference
    from tgate_export.runtime.backends import check_backend

    check_backend(options["backend"])
    try:
        known = reference(model)
        found = find_bundle(known, size, folder)
        if found is None:
            return _build(model, known, size, folder, of_file, options)
        _check_refiners(found.manifest.latents, found.manifest.refines, options)
        lacks = _begins_with_image(options) and "image" not in found.manifest.parameters
        if not is_of_same_files(found, model, known, **of_file):
            why = "it was built from other files" if of_file else "the model's files changed"
            return _build_again(found, model, why, of_file, image_to_image=lacks)
        if lacks:
            why = "it lacks image-to-image"
            return _build_again(found, model, why, of_file, image_to_image=True)
    except TGateError as error:
        error.hint = tuple(_for_run(model, part) for part in error.hint)
        raise
    return found.path


def _given_bundle(model: str) -> Path | None:
    """Return the bundle that was given in a model's place; None for a model."""
    path = Path(model)
    if is_bundle(path):
        return path
    from tgate_export.families.names import NAMED_MODELS

    if model in NAMED_MODELS:
        return None
    built: Path = BundlePath().convert(model, None, None)
    if is_bundle(built):
        return built
    if built.parts[:-1] == ("engines",) and not built.exists():  # no id of a model
        raise InvalidRequestError(
            f"{model}: no such folder; if {path.name} is a model, `tgate-export run {path.name}` "
            "builds it"
        )
    return None


def _build(
    model: str,
    known: Reference,
    size: tuple[Range, Range] | None,
    folder: Path | None,
    of_file: dict[str, Any],
    options: dict[str, Any],
) -> Path:
    """Build a model's bundle for the first time."""
    require_export_extra()
    from tgate_export.build.options import check_options, default_folder
    from tgate_export.families import geometry
    from tgate_export.families.source import resolve_source

    if known.kind == "hub":
        _say(f"Fetching {known.model} from Hugging Face, but for what its cache has.")
    source = resolve_source(model, **of_file)
    latents = geometry.latents(source)
    video = latents.video
    check_given(options["out"], options["prompt"], options["image"], video=video)
    _check_refiners(latents, source.family.aesthetic, options)
    if options["hires"] is not None and (size is None or all(side.fixed for side in size)):
        raise click.UsageError(
            "--hires needs a bundle of both sizes: give the smallest, the first pass's and the "
            "largest, such as --size 512:512:1024"
        )
    changes: dict[str, Any] = {
        "size": size,
        "image_to_image": _begins_with_image(options) and not video,
    }
    folder = folder or default_folder(source, check_options(source, "fp32", **changes))
    if is_bundle(folder):
        raise InvalidRequestError(
            f"{folder} holds a bundle of another size", "choose another ", Argument("out")
        )
    _announce(f"{folder} is not built yet", source)
    return _built(model, out=folder, **of_file, **changes)


def _check_refiners(latents: Latents, refines: bool, options: Mapping[str, Any]) -> None:
    """Refuse a refiner that would begin a run, and a `--refiner` that cannot go on from it.

    Args:
        latents: the model's.
        refines: whether it is a refiner itself.
        options: of `generate`.
    """
    check_beginning(options["image"], refines=refines)
    Refiner.of(options["refiner"], options["refiner_start"], latents, None)


def _build_again(
    bundle: Bundle, model: str, why: str, of_file: dict[str, Any], *, image_to_image: bool
) -> Path:
    """Build a bundle as it was built, of what the model is now."""
    require_export_extra()
    from tgate_export.families.source import resolve_source
    from tgate_export.runtime.rebuild import rebuild

    arguments: dict[str, Any] = {**rebuild(bundle).arguments, **of_file, "model": model}
    source = resolve_source(
        model,
        config=arguments.get("config"),
        vae=arguments.get("vae"),
        loras=arguments.get("loras", ()),
        embeddings=arguments.get("embeddings", ()),
    )
    _announce(f"{bundle.path} is built again: {why}", source)
    if image_to_image:
        arguments["image_to_image"] = True
    return _built(**arguments)


def _built(model: str, **arguments: Any) -> Path:
    from tgate_export.build.build import build_bundle
    from tgate_export.cli.build import report_bundle

    result = build_bundle(model, progress=RichProgress(), **arguments)
    report_bundle(result)
    return result.path


def _begins_with_image(options: Mapping[str, Any]) -> bool:
    """Whether a pass of the call begins with a picture that is encoded."""
    return options["image"] is not None or options["hires_upscaler"] == "lanczos"


def _announce(what: str, source: ModelSource) -> None:
    from tgate_export.build.estimate import estimate

    needs = estimate(source)
    minutes = f"{needs.minutes} minute{'' if needs.minutes == 1 else 's'}"
    _say(
        f"{what}. Building takes about {minutes} on two cores, less where the cache has graphs of "
        f"it, and {megabytes(needs.bytes)} on disk beside the cache's copy."
    )


def _say(text: str) -> None:
    stderr().print(text, soft_wrap=True)


def _for_run(model: str, part: str | Call) -> str | Call:
    """Word what to do about a failed build by this command's options, or by those of `build`."""
    if not isinstance(part, Argument):
        return part
    if part.name == "out":
        return Argument("bundle", part.value)
    if part.value is None:
        return part
    return f"`{on_command_line(Build({'model': model, part.name: part.value}))}`"
