"""What the parts of a manifest say about one another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tgate_export.bundle.origins import (
    FromCache,
    FromFormula,
    FromGraph,
    FromImage,
    FromMask,
    FromParameter,
    FromTokens,
)
from tgate_export.parameters import SYNTAXES

if TYPE_CHECKING:
    from tgate_export.bundle.manifest import Manifest
    from tgate_export.bundle.manifest_graphs import Input, Tensor

Shape = tuple[int | str, ...]
# What the host computes -> how many numbers of each sample, and the parameters that it reads.
FORMULAS: dict[str, tuple[int | None, tuple[str, ...]]] = {
    "time_ids": (6, ("original_size", "crops_coords_top_left", "target_size")),
    "aesthetic_ids": (5, ("original_size", "crops_coords_top_left", "aesthetic_score")),
    "negative_aesthetic_ids": (
        5, ("original_size", "crops_coords_top_left", "negative_aesthetic_score"),
    ),
    "resolution": (2, ()),
    "aspect_ratio": (1, ()),
    "video_ids": (3, ("fps", "motion_bucket_id", "noise_aug_strength")),
    "frame_guidance_scale": (None, ("guidance_scale", "min_guidance_scale")),
}  # fmt: skip


# What every run has by these names, in some front end.
RESERVED = frozenset(
    {
        "prompt", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "seed",
        "num_images", "num_images_per_prompt", "height", "width", "latents", "output_type",
        "parameters", "steps", "deadline", "format", "progress", "preview",
        "hires", "hires_strength", "hires_steps", "hires_upscaler", "denoising_start",
        "denoising_end",
    }
)  # fmt: skip


class ReferenceFaultError(ValueError):
    """A field that does not fit the others."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check_references(manifest: Manifest) -> None:
    """Check that what a manifest names is there, and of the shape that a runtime will write.

    Raises:
        ReferenceFaultError: says what is not.
    """
    _check_files(manifest)
    for name, graph in manifest.graphs.items():
        for index, tensor in enumerate(graph.inputs):
            if fault := _fault(manifest, tensor):
                raise ReferenceFaultError(
                    f"graphs.{name}.inputs.{index}.from",
                    f"input {tensor.name!r} of graph {name!r} {fault}",
                )
    _check_tiles(manifest)
    _check_methods(manifest)
    _check_parameters(manifest)
    if "prompt_syntax" in manifest.parameters:
        _check_syntax(manifest)


def _check_files(manifest: Manifest) -> None:
    used = {tokenizer.file for tokenizer in manifest.tokenizers.values()}
    used |= {sampler.file for sampler in manifest.samplers.values()}
    for name, graph in manifest.graphs.items():
        used |= {graph.file} | ({graph.weights} if graph.weights else set())
        if graph.weights is not None and _folder(graph.weights) != _folder(graph.file):
            raise ReferenceFaultError(
                f"graphs.{name}.weights", f"the weights of graph {name!r} do not lie beside it"
            )
    unlisted = sorted(used - manifest.files.keys())
    if unlisted:
        raise ReferenceFaultError(
            "files", f"file {unlisted[0]!r} is used but not listed under files"
        )


def _fault(manifest: Manifest, tensor: Input) -> str:
    """Return what is wrong with where an input comes from, or ""."""
    origin, row = tensor.origin, tensor.shape[1:]
    if isinstance(origin, FromTokens | FromMask):
        name = origin.tokens if isinstance(origin, FromTokens) else origin.mask
        if name not in manifest.tokenizers:
            return f"is of tokenizer {name!r}, which is not listed"
        length = manifest.tokenizers[name].max_length
        return "" if row == (length,) else f"is not of {length} tokens"
    if isinstance(origin, FromParameter):
        return _parameter_fault(manifest, origin.parameter, row)
    if isinstance(origin, FromFormula):
        return _formula_fault(manifest, origin, row)
    if isinstance(origin, FromImage):
        if fault := _parameter_fault(manifest, origin.image, None, ("image",)):
            return fault
        if origin.noise is not None and origin.noise not in manifest.parameters:
            return f"is of parameter {origin.noise!r}, which is not listed"
        return "" if len(row) == 3 and row[2] == 3 else "is no picture"
    if isinstance(origin, FromGraph):
        return _graph_fault(manifest, origin, tensor)
    if isinstance(origin, FromCache):
        cache = manifest.caches.get(origin.cache)
        if cache is None:
            return f"is cache {origin.cache!r}, which is not listed"
        same = (cache.dtype, cache.shape) == (tensor.dtype, tensor.shape)
        return "" if same else f"is not of cache {origin.cache!r}'s type and shape"
    return ""


def _graph_fault(manifest: Manifest, origin: FromGraph, tensor: Tensor) -> str:
    made = manifest.graphs.get(origin.graph)
    outputs = () if made is None else made.outputs
    shapes = _shapes(outputs)
    if origin.output not in shapes:
        return f"is output {origin.output!r} of graph {origin.graph!r}, which is not there"
    shape = shapes[origin.output]
    of_prompt = origin.graph == manifest.prompt_encoder
    if of_prompt and origin.chunks != manifest.chunks.get(origin.output):
        return f"has other chunks of {origin.output!r} than another input"
    if origin.chunks is not None:
        if not of_prompt:
            return f"is of chunks of graph {origin.graph!r}, which reads no prompt"
        several = [output.name for output in outputs].count(origin.output) > 1
        if several or len(shape) != 3 or isinstance(shape[1], str):
            return f"is of chunks of {origin.output!r}, which is not by token"
        shape = (shape[0], origin.chunks * shape[1], shape[2])
    return "" if shape == tensor.shape else f"is not of {origin.output!r}'s shape"


def _parameter_fault(
    manifest: Manifest,
    name: str,
    row: Shape | None,
    types: tuple[str, ...] = ("integer", "number", "pair"),
) -> str:
    parameter = manifest.parameters.get(name)
    if parameter is None:
        return f"is parameter {name!r}, which is not listed"
    if parameter.type not in types:
        return f"cannot be parameter {name!r}, which is of type {parameter.type}"
    wanted = (2,) if parameter.type == "pair" else ()
    if row is not None and row != wanted:
        return f"is not of parameter {name!r}'s shape"
    return ""


def _formula_fault(manifest: Manifest, origin: FromFormula, row: Shape) -> str:
    width, parameters = FORMULAS[origin.formula]
    if origin.formula == "frame_guidance_scale":
        width = manifest.latents.frames
    if row != (width,):
        return f"is not of the shape of {origin.formula}"
    missing = [name for name in parameters if name not in manifest.parameters]
    return f"is of parameter {missing[0]!r}, which is not listed" if missing else ""


def _check_tiles(manifest: Manifest) -> None:
    latent = manifest.latents.downscale
    for name, graph in manifest.graphs.items():
        if (tiles := graph.tiles) is None:
            continue
        if name not in ("vae_encoder", "vae_decoder"):
            raise ReferenceFaultError(f"graphs.{name}.tiles", "only graphs of the VAE have tiles")
        if tiles.size % latent or tiles.overlap % latent or tiles.overlap >= tiles.size:
            raise ReferenceFaultError(
                f"graphs.{name}.tiles",
                f"{tiles.size} pixels that overlap by {tiles.overlap} are no tiles of latents of "
                f"{latent} pixels",
            )


def _check_methods(manifest: Manifest) -> None:
    for name, method in manifest.methods.items():
        for parameter in method.parameters:
            found = manifest.parameters.get(parameter)
            if found is None or found.type != "integer" or not isinstance(found.default, int):
                raise ReferenceFaultError(
                    f"methods.{name}.parameters",
                    f"it reads {parameter!r}, which is no whole number with a default",
                )
        for comparison in (entry for guard in method.rule for entry in guard.all):
            least = None
            if comparison.modulo is not None:
                least = manifest.parameters[comparison.modulo].min
            if comparison.modulo is not None and (least is None or least < 1):
                raise ReferenceFaultError(
                    f"methods.{name}.rule", f"it divides by {comparison.modulo!r}, which may be 0"
                )
    for name, cache in manifest.caches.items():
        if not any(
            (tensor.dtype, tensor.shape) == (cache.dtype, cache.shape)
            for phase in manifest.phases
            for tensor in manifest.graphs[phase].outputs
            if tensor.name == name
        ):
            raise ReferenceFaultError(f"caches.{name}", "no graph writes it as it is listed")


def _check_parameters(manifest: Manifest) -> None:
    for name in ("num_inference_steps", "scheduler"):
        if name not in manifest.parameters or manifest.parameters[name].default is None:
            raise ReferenceFaultError(f"parameters.{name}", "it has no default")
    for name, parameter in manifest.parameters.items():
        if name in RESERVED:
            raise ReferenceFaultError(f"parameters.{name}", "every run has something of that name")
        if parameter.default is not None and (fault := parameter.fault(parameter.default)):
            raise ReferenceFaultError(f"parameters.{name}.default", f"it {fault}")
    if set(manifest.parameters["scheduler"].choices) != set(manifest.samplers):
        raise ReferenceFaultError("parameters.scheduler.choices", "they are not the samplers")


def _check_syntax(manifest: Manifest) -> None:
    """Check what weights and chunks of prompts need."""
    parameter = manifest.parameters["prompt_syntax"]
    if parameter.type != "choice" or not {*parameter.choices} <= {*SYNTAXES}:
        raise ReferenceFaultError("parameters.prompt_syntax", "it is no syntax that is known")
    if len(manifest.chunks) != 1:
        raise ReferenceFaultError(
            "parameters.prompt_syntax", "no one output has the prompt's tokens"
        )
    (output,) = manifest.chunks
    (width,) = (
        tensor.shape[-1]
        for tensor in manifest.graph(manifest.prompt_encoder).outputs
        if tensor.name == output
    )
    last = 0
    for name, tokenizer in sorted(
        manifest.tokenizers.items(), key=lambda entry: entry[1].columns or (0, 0)
    ):
        columns = tokenizer.columns or (0, 0)
        if columns[0] != last or columns[1] <= last:
            raise ReferenceFaultError(
                f"tokenizers.{name}.columns", f"they do not begin at {last}, where others end"
            )
        if tokenizer.max_length < 3:
            raise ReferenceFaultError(
                f"tokenizers.{name}.max_length", "there is no room between start and end"
            )
        last = columns[1]
    if last != width:
        raise ReferenceFaultError("tokenizers", f"their columns end at {last}, not at {width}")


def _shapes(tensors: Iterable[Tensor]) -> dict[str, Shape]:
    return {tensor.name: tensor.shape for tensor in tensors}


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
