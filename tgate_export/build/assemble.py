"""Diffusers pipeline -> a folder of graphs, samplers and tokenizers, proven against PyTorch.

Take what is in the cache, load, declare and export the rest, compare, pack. Nothing heavy is
imported where everything is in the cache.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_export.build.assembly import Assembly
from tgate_export.build.compare import differences_of, with_comparison
from tgate_export.build.describe import describe
from tgate_export.build.disk import require_space
from tgate_export.build.request import BuildRequest
from tgate_export.build.tokenizers import write_tokenizers
from tgate_export.build.units import label, load_unit, store_unit
from tgate_export.bundle.hashing import hash_files
from tgate_export.bundle.integrity import Bundle, bundle_files
from tgate_export.bundle.manifest import MANIFEST_NAME, File, Manifest
from tgate_export.bundle.sampler_names import SCHEDULER_CONFIG
from tgate_export.common.memory import release_memory
from tgate_export.common.progress import Progress
from tgate_export.export.content_cache import ContentCache
from tgate_export.export.unit import GRAPHS_FOLDER, unit_key
from tgate_export.families import geometry
from tgate_export.families.units import DENOISER, Unit, units
from tgate_export.samplers.compile_all import SamplerCompilation, choose_default
from tgate_export.verify.differences import Difference, require

if TYPE_CHECKING:
    from tgate_export.methods.denoiser_phases import DenoiserPhases


def assemble(
    request: BuildRequest,
    staging: Path,
    cache: ContentCache,
    progress: Progress,
    *,
    compare_afresh: bool = False,
) -> tuple[Manifest, tuple[Difference, ...]]:
    """Write a bundle into an empty folder, and prove it.

    Args:
        request: what is built.
        staging: the folder.
        cache: where exported graphs are taken from and kept.
        progress: told of every stage.
        compare_afresh: compare also what equalled PyTorch when it was exported.

    Raises:
        ModelError: a model that cannot be loaded or has nothing to gate.
        VerificationError: a graph that differs from PyTorch.
        TGateError: the disk has too little space.
    """
    source = request.source
    work = Assembly(request, staging, cache, progress, _keys(request))
    _load_cached(work, compare_afresh=compare_afresh)
    starts = request.options.image_to_image
    with SamplerCompilation(
        source.config("scheduler"), staging / "samplers", request.options.samplers,
        family=source.family.name, starts=starts,
    ) as compilation:  # fmt: skip
        _load(work)
        _export(work)
        tokenizers = write_tokenizers(request, cache, staging)
        _write_sampler_graph(work)
        _write_scheduler_config(work)
        with progress.stage("compiling samplers"):
            samplers = compilation.results(progress)
    manifest = describe(
        request,
        work.in_order(),
        samplers=samplers,
        default=choose_default(source.defaults.scheduler, samplers, progress),
        tokenizers=tokenizers,
        files=_hash(work),
    )
    _compare(work, Bundle(staging, manifest))
    differences = differences_of(work.in_order())
    require(differences)
    (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest, differences


def _keys(request: BuildRequest) -> dict[Unit, str]:
    options = request.options
    return {
        unit: unit_key(
            request.source,
            unit,
            request.hashes,
            precision=options.precision,
            size=options.size,
            batch=options.batch,
            method=options.method,
            phases=options.phases,
            vae_tile=options.vae_tile,
        )
        for unit in units(request.source, image_to_image=options.image_to_image)
    }


def _load_cached(work: Assembly, *, compare_afresh: bool) -> None:
    """Copy from the cache what was exported before."""
    work.graphs.mkdir()
    for unit, key in work.keys.items():
        taken = load_unit(work.cache, key, work.graphs)
        if taken is not None:
            found, hashes = taken
            work.exported[unit.name] = (
                found.model_copy(update={"compared": None}) if compare_afresh else found
            )
            work.hashes |= {f"{GRAPHS_FOLDER}/{name}": file for name, file in hashes.items()}
    if work.exported:
        names = ", ".join(work.exported)
        left = {unit.name for unit in work.unproven} & work.exported.keys()
        how = "" if left else ", compared with PyTorch when exported"
        work.progress.note(f"from the cache{how}: {names}")


def _load(work: Assembly) -> None:
    """Load what of the model has to be exported, or run for comparison."""
    needed = {name for unit in (*work.missing, *work.compared_here) for name in unit.components}
    if not needed:
        return
    if any(unit.name == DENOISER for unit in work.compared_here):
        # It is run on what the prompt encoder makes of a prompt.
        needed.update(next(iter(work.keys)).components)
    from tgate_export.families.loading import load

    with work.progress.stage("loading the model"):
        work.model = load(work.request.source, work.request.options.precision, needed)
        _check_space(work)


def _check_space(work: Assembly) -> None:
    assert work.model is not None
    names = {name for unit in work.missing for name in unit.components}
    weights = [weight for name in names for weight in work.model[name].parameters()]
    needed = sum(weight.numel() * weight.element_size() for weight in weights)
    require_space(work.staging, needed)


def _phases(work: Assembly) -> DenoiserPhases | None:
    """Return the denoiser's phases; None where it is not loaded."""
    from tgate_export.families.graphs import denoiser_phases

    source, options, model = work.request.source, work.request.options, work.model
    if model is None or source.family.denoiser not in model.modules:
        return None
    return denoiser_phases(source, model, options.size, options.method, options.phases)


def _export(work: Assembly) -> None:
    """Export the units that are missing."""
    if not work.missing:
        return
    from tgate_export.export.export_unit import export_unit
    from tgate_export.families.graphs import graph_exports

    source, options, model = work.request.source, work.request.options, work.model
    assert model is not None
    phases = _phases(work)
    declared = graph_exports(
        source, model, options.size, phases,
        image_to_image=options.image_to_image, vae_tile=options.vae_tile,
    )  # fmt: skip
    for unit in work.missing:
        work.exported[unit.name] = export_unit(
            source, unit, model, declared, phases, work.graphs, work.progress,
            batch=options.batch,
        )  # fmt: skip


def _write_sampler_graph(work: Assembly) -> None:
    from tgate_export.samplers.graph import save_sampler_graph

    save_sampler_graph(work.graphs / "sampler.onnx")


def _write_scheduler_config(work: Assembly) -> None:
    """Write what other samplers are compiled from when they are first asked for."""
    source = work.request.source
    if source.samplers is not None:
        return  # no other sampler serves it
    file = work.staging / SCHEDULER_CONFIG
    file.parent.mkdir()
    # diffusers writes the default of `lambda_min_clipped` as -Infinity, which is no JSON.
    config = {
        name: value
        for name, value in source.config("scheduler").items()
        if not isinstance(value, float) or math.isfinite(value)
    }
    content = json.dumps(config, indent=2, sort_keys=True, allow_nan=False)
    file.write_text(content + "\n", encoding="utf-8")


def _hash(work: Assembly) -> dict[str, File]:
    """Return the hashes of all files; those of the cache were checked, and are known."""
    with work.progress.stage("hashing"):
        names = sorted(bundle_files(work.staging))
        rest = hash_files(work.staging, [name for name in names if name not in work.hashes])
        found = work.hashes | dict(rest)
    return {name: found[name] for name in names}


def _compare(work: Assembly, bundle: Bundle) -> None:
    """Compare with PyTorch what never was, and store it for the next build."""
    unproven, compared_here = work.unproven, work.compared_here
    if not unproven:
        return
    here = {name for unit in compared_here for name in work.exported[unit.name].graphs}
    differences = _compare_here(work, bundle, here) if here else ()
    work.model = None
    if unproven != compared_here:
        copy = reduced_copy(work.request, bundle, work.staging, work.cache, work.progress)
        with copy as (_, others):
            differences += tuple(other for other in others if other.graph not in here)
    require(differences)
    for unit in unproven:
        work.exported[unit.name] = with_comparison(work.exported[unit.name], differences)
    if work.cache.most_bytes:
        _store(work, unproven, bundle.manifest)


def _store(work: Assembly, stored: list[Unit], manifest: Manifest) -> None:
    """Store units for other builds."""
    with work.progress.stage("keeping graphs in the cache"):
        for unit in stored:
            name, found = label(work.request, unit), work.exported[unit.name]
            store_unit(work.cache, work.keys[unit], name, found, manifest, work.graphs)


def _compare_here(work: Assembly, bundle: Bundle, graphs: set[str]) -> tuple[Difference, ...]:
    """Compare graphs with PyTorch at the bundle's size; leaves no PyTorch model in memory."""
    from tgate_export.verify.graphs import check_graphs, graph_references

    assert work.model is not None
    with work.progress.stage("running PyTorch for reference"):
        references = graph_references(
            work.request.source, work.model, bundle.manifest, _phases(work),
            batch=work.request.options.batch.opt, only=graphs,
        )  # fmt: skip
    # Never hold the PyTorch model and an engine at once.
    work.model = None
    release_memory()
    return check_graphs(bundle, references, work.progress)


@contextmanager
def reduced_copy(
    request: BuildRequest,
    bundle: Bundle,
    folder: Path,
    cache: ContentCache,
    progress: Progress,
    *,
    compare_afresh: bool = False,
) -> Iterator[tuple[Bundle, tuple[Difference, ...]]]:
    """Assemble a bundle's copy at a size that a CPU can run, and compare their graphs.

    Gives the copy, which is removed at the end, and how far it is from PyTorch.

    Args:
        request: what the bundle was built from.
        bundle: the bundle.
        folder: where there is space for the copy.
        cache: where exported graphs are taken from and kept.
        progress: told of every stage.
        compare_afresh: see `assemble`.

    Raises:
        VerificationError: as `assemble`, or graphs that differ in more than sizes.
    """
    from tgate_export.verify.structure import require_same_graphs

    options = request.options
    size = geometry.check_size(request.source, options.size)
    smaller = replace(request, options=replace(options, size=size))
    with tempfile.TemporaryDirectory(dir=folder, prefix="copy-") as copy_folder:
        progress.note(f"comparing with PyTorch at {size.width}x{size.height}, on a copy")
        path = Path(copy_folder)
        manifest, differences = assemble(
            smaller, path, cache, progress, compare_afresh=compare_afresh
        )
        copy = Bundle(path, manifest)
        with progress.stage("comparing graphs with the copy's"):
            require_same_graphs(bundle, copy)
        yield copy, differences
