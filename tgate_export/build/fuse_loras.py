"""`fuse_loras`: a bundle -> another one with LoRA files in its weights; nothing is exported.

Neither the model nor torch is needed: the bundle says where its weights are
(`bundle/layers_file.py`), and what is changed is changed as a build does it
(`adapters/change.py`), so that the files are those that a build with the LoRA would write.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tgate_export.adapters.lora_file import Lora
from tgate_export.build.changed_weights import (
    ChangedTensor,
    Changes,
    LayerChange,
    UnitWriter,
    constant_changes,
    layer_changes,
)
from tgate_export.build.disk import readable_disk_errors, require_space
from tgate_export.build.existing import up_to_date
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.integrity import Bundle, open_bundle
from tgate_export.bundle.layers_file import Layers, read_layers
from tgate_export.bundle.manifest import MANIFEST_NAME, File, Manifest
from tgate_export.bundle.plans import keep_plans, plan_sets, stale_parts
from tgate_export.bundle.store import check_replaceable, remove_leftovers, replace_bundle
from tgate_export.common.copy_file import copy_file
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.common.hints import Argument, Build
from tgate_export.common.install import pip_install
from tgate_export.common.progress import Progress
from tgate_export.families.loras import (
    GivenLora,
    applied,
    check_lora,
    hash_with_loras,
    notes,
    open_loras,
)
from tgate_export.families.registry import FAMILIES
from tgate_export.runtime.rebuild import rebuild

if TYPE_CHECKING:
    from tgate_export.verify.differences import Difference


@dataclass(frozen=True)
class FuseResult:
    """What `fuse_loras` did.

    Attributes:
        path: the new bundle.
        up_to_date: it was there already, made of the same things.
        changed: every constant of a graph that is other than before; none when nothing was made.
        unread: layers, by component and path, that the files change and no graph reads.
        seconds: that it took.
        manifest: the new bundle's.
        differences: from PyTorch, where that was asked for.
        stale_plans: plan sets of the old bundle with plans of graphs that changed, which do not
            come along -> the call that compiles them.
    """

    path: Path
    up_to_date: bool
    changed: tuple[ChangedTensor, ...]
    unread: tuple[tuple[str, str], ...]
    seconds: float
    manifest: Manifest
    differences: tuple[Difference, ...] = ()
    stale_plans: Mapping[str, Build] = field(default_factory=dict)


def fuse_loras(
    bundle: str | Path,
    loras: Sequence[GivenLora],
    *,
    out: str | Path,
    verify: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> FuseResult:
    """Make a bundle whose weights have LoRA files in them, in seconds, and put it in place at once.

    It equals what `build_bundle` would make of the bundle's model with its LoRA files and these.
    Plans of graphs that stay as they are come along; others have to be compiled.

    Args:
        bundle: of a model that takes LoRA; it stays as it is, and may be in use.
        loras: LoRA files, each with the number that its change of the weights is multiplied by, in
            the order in which they are applied, after those that the bundle has.
        out: the new bundle's folder.
        verify: compare with PyTorch before the new bundle appears, as `verify_bundle` does; that
            needs torch, and the model where the bundle's manifest says.
        force: make it even when it is up to date, and replace foreign files in its folder.
        progress: told of every stage.

    Raises:
        InvalidRequestError: no such file, one that is given twice or in the bundle already, a scale
            that is no finite number, or a bundle of a model that takes no LoRA.
        ModelError: a LoRA file that cannot be read, or is for another model.
        BundleError: a damaged bundle, one that does not say where its weights are, or `out` holds
            something else.
        VerificationError: it was asked to verify, and a bound was broken.
        TGateError: the disk has too little space.
    """
    progress, started = progress or Progress(), time.monotonic()
    path, out = Path(bundle), Path(out)
    with progress.stage("checking the bundle"):
        if not loras:
            raise InvalidRequestError("no LoRA files: name at least one", field="loras")
        _require_protobuf()
        opened = open_bundle(path, check_hashes=False)
        _check_apart(opened.path, out)
        files = open_loras(loras)
        layers = _layers(opened, path, files, out)
        changes = layer_changes(files, layers)
        manifest = _described(opened.manifest, files)
        check_replaceable(out, force=force)
        for note in notes(files):
            progress.note(*note)
        existing = None if force else up_to_date(out, manifest.build_key)
    changed: tuple[ChangedTensor, ...] = ()
    differences: tuple[Difference, ...] = ()
    with readable_disk_errors(out):
        if existing is not None:
            remove_leftovers(out)
            manifest = existing
            if verify:
                differences = _verified(out, progress)
        else:
            with replace_bundle(out, force=force) as staging:
                with _intact(opened.path):
                    written, changed = _write(
                        opened, constant_changes(changes, layers), staging, progress
                    )
                manifest = manifest.model_copy(update={"files": manifest.files | written})
                (staging / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
                if verify:
                    differences = _verified(staging, progress)
                keep_plans(out, staging, manifest, beside=opened.path)
    return FuseResult(
        path=out,
        up_to_date=existing is not None,
        changed=changed,
        unread=_unread(changes, layers),
        seconds=time.monotonic() - started,
        manifest=manifest,
        differences=differences,
        stale_plans=_stale_plans(opened, Bundle(out, manifest)),
    )


def _check_apart(bundle: Path, out: Path) -> None:
    """Refuse a folder that would replace the bundle, or lie in it.

    Args:
        bundle: its real path.
        out: the new bundle's folder.
    """
    place = Path(os.path.realpath(out))
    if place == bundle:
        what = "is the bundle itself"
    elif place in bundle.parents:
        what = f"holds the bundle {bundle}"
    elif bundle in place.parents:
        what = f"is inside the bundle {bundle}"
    else:
        return
    raise InvalidRequestError(f"{out} {what}", "choose another ", Argument("out"), field="out")


@contextlib.contextmanager
def _intact(bundle: Path) -> Iterator[None]:
    """Check a bundle's hashes while the block reads it, and before its end.

    Raises:
        BundleError: the bundle is damaged, whatever the block made of it.
    """
    with ThreadPoolExecutor(1) as pool:
        checked = pool.submit(open_bundle, bundle, cache_hashes=True)
        try:
            yield
        except TGateError:
            checked.result()
            raise
        checked.result()


def _require_protobuf() -> None:
    try:
        import google.protobuf  # noqa: F401
    except ImportError:
        raise TGateError(f"reading graphs needs protobuf: {pip_install('cpu')}") from None


def _layers(bundle: Bundle, path: Path, loras: Sequence[Lora], out: Path) -> Layers:
    """Return the bundle's layers, after all checks of the files that need none of their tensors.

    Args:
        bundle: the bundle.
        path: as the user named it.
        loras: the files.
        out: the new bundle's folder, for a hint.
    """
    manifest = bundle.manifest
    family = FAMILIES.get(manifest.family)
    if family is None or not family.loras:
        title = manifest.family if family is None else family.title
        raise InvalidRequestError(
            f"{path}: LoRA is for Stable Diffusion and SDXL, and this is a bundle of {title}: "
            "choose another one",
            field="bundle",
        )
    hashes = {lora.path: hash_file(lora.path).sha256 for lora in loras}
    for lora in loras:
        for known in manifest.source.loras:
            if known.sha256 == hashes[lora.path] or Path(known.file) == lora.path:
                raise InvalidRequestError(
                    f"lora {lora.path} is in {path} already, with scale {known.scale:g}: take a "
                    "bundle without it, and add up its scales",
                    field="loras",
                )
    layers = read_layers(bundle)
    texts = (
        layer.shape[1]
        for name, layer in layers.get("unet", {}).items()
        if name.endswith(".attn2.to_k")
    )
    width = next(texts, None)
    for lora in loras:
        check_lora(lora, family, width)
    if {component for lora in loras for component in lora.layers} - layers.keys():
        given = tuple((str(lora.path), lora.scale) for lora in loras)
        raise BundleError(
            f"{path} does not say where its weights are, as those of older versions",
            "build it with the LoRA: ",
            rebuild(bundle, loras=manifest.source.given_loras() + given, out=out),
        )
    return layers


def _described(manifest: Manifest, loras: Sequence[Lora]) -> Manifest:
    """Return a manifest of a bundle with more LoRA files; the hashes of its files are the old."""
    hashes = {lora.path: hash_file(lora.path) for lora in loras}
    source = manifest.source
    return manifest.model_copy(
        update={
            "source": source.model_copy(
                update={
                    "fingerprint": hash_with_loras(source.fingerprint, loras, hashes),
                    "loras": (*source.loras, *applied(loras, hashes)),
                }
            ),
            "build_key": hash_with_loras(manifest.build_key, loras, hashes),
        }
    )


def _write(
    bundle: Bundle, changes: Changes, staging: Path, progress: Progress
) -> tuple[dict[str, File], tuple[ChangedTensor, ...]]:
    """Write the new bundle's files; return the hashes of those that were changed, and what was."""
    manifest = bundle.manifest
    touched = {manifest.graphs[graph].weights for graph, _ in changes}
    own = {
        file
        for graph in manifest.graphs.values()
        if graph.weights in touched
        for file in (graph.file, graph.weights)
        if file is not None
    }
    require_space(staging, sum(file.bytes for file in manifest.files.values()))
    for name in manifest.files:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        if name not in own:
            with bundle.file(name).open("rb") as source:
                copy_file(source.fileno(), staging / name)
    written: dict[str, File] = {}
    changed: tuple[ChangedTensor, ...] = ()
    for weights in sorted(file for file in touched if file is not None):
        with progress.stage(f"changing {Path(weights).stem}"):
            files, found = UnitWriter(bundle, weights, changes).write(staging, progress)
        written |= files
        changed += found
    return written, changed


def _verified(staging: Path, progress: Progress) -> tuple[Difference, ...]:
    """Compare the new bundle with PyTorch before it is put in place."""
    from tgate_export.build.verify_bundle import verify_bundle
    from tgate_export.verify.differences import require

    differences = verify_bundle(staging, progress=progress).differences
    require(differences)
    return differences


def _unread(changes: Sequence[LayerChange], layers: Layers) -> tuple[tuple[str, str], ...]:
    return tuple(
        (change.component, change.path)
        for change in changes
        if not layers[change.component][change.path].constants
    )


def _stale_plans(old: Bundle, new: Bundle) -> dict[str, Build]:
    """Return the plan sets that did not come along as a whole, and how they are compiled again."""
    found = {}
    there = {
        (plans.name, graph)
        for plans in plan_sets(new.path)
        for graph, plan in plans.plans.items()
        if not stale_parts(plan.key, new.manifest)
    }
    for plans in plan_sets(old.path):
        if any((plans.name, graph) not in there for graph in plans.plans):
            arguments: dict[str, object] = {"library": plans.key.library}
            if plans.key.library == "tensorrt-rtx":
                arguments["compute_capabilities"] = plans.key.compute_capabilities
            found[plans.name] = rebuild(new, arguments)
    return found
