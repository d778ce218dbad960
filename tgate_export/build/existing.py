"""The bundle of a model that is there already: found without torch, a download or a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tgate_export.build.options import folder_of
from tgate_export.bundle.integrity import Bundle, check_files, read_manifest
from tgate_export.bundle.manifest import MANIFEST_NAME, Manifest, Range, Source
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.common.hints import Argument
from tgate_export.families.embeddings import GivenEmbedding, are_added
from tgate_export.families.loras import GivenLora, are_applied
from tgate_export.families.reference import Reference
from tgate_export.families.source import resolve_source


def up_to_date(out: Path, key: str) -> Manifest | None:
    """Return the manifest of a whole bundle that has this build key; None where there is none."""
    if not (out / MANIFEST_NAME).is_file():
        return None
    try:
        manifest = read_manifest(out)
        if manifest.build_key != key:
            return None
        check_files(Bundle(out, manifest), check_hashes=True)
    except BundleError:  # damaged: build it again
        return None
    return manifest


def find_bundle(
    known: Reference, size: tuple[Range, Range] | None, folder: Path | None
) -> Bundle | None:
    """Return the bundle of a model that a build would make, or one that does as well.

    Args:
        known: the model.
        size: width and height that the bundle has to allow; whatever it has when None.
        folder: where it is, whatever its size; where builds put it when None.

    Raises:
        InvalidRequestError: the folder holds a bundle of another model.
        BundleError: it holds a bundle that cannot be read.
    """
    folders = [folder] if folder else [folder_of(known.name)]
    if size and not folder:
        folders.insert(0, folder_of(known.name, size))
    for place in folders:
        if not (place / MANIFEST_NAME).is_file():
            continue
        manifest = read_manifest(place)
        source = manifest.source
        if (source.kind, source.model) != (known.kind, known.model):
            weights = " with random weights" if source.kind == "random" else ""
            raise InvalidRequestError(
                f"{place} holds a bundle of {source.model}{weights}, not of {known.model}",
                f"give {place} itself to use it, or another ",
                Argument("out"),
            )
        if folder or size is None or _allows(manifest, *size):
            return Bundle(place, manifest)
    return None


def is_of_same_files(
    bundle: Bundle,
    model: str,
    known: Reference,
    config: str | None = None,
    vae: str | None = None,
    loras: Sequence[GivenLora] | None = None,
    embeddings: Sequence[GivenEmbedding] | None = None,
) -> bool:
    """Whether a model's files still are what its bundle was built from.

    Of a model on the hub it is only asked where a revision was named: a commit never changes.

    Args:
        bundle: see `find_bundle`.
        model: as the user named it.
        known: what that stands for.
        config: of a file, whose configurations to use; those of the bundle when None.
        vae: another VAE's file or folder; that of the bundle when None.
        loras: LoRA files and their scales; those of the bundle when None.
        embeddings: textual inversion files and their tokens; those of the bundle when None.

    Raises:
        ModelError: it can no longer be built.
    """
    source = bundle.manifest.source
    if known.kind == "hub":
        if loras is not None and not are_applied(loras, source.loras):
            return False
        if embeddings is not None and not are_added(embeddings, source.embeddings):
            return False
        if vae is not None and not _has_vae(model, source, vae):
            return False
        if known.revision in (None, source.revision):
            return True
        return resolve_source(model).revision == source.revision
    found = resolve_source(
        model,
        config=config or source.config,
        vae=vae or source.vae,
        loras=source.given_loras() if loras is None else loras,
        embeddings=source.given_embeddings() if embeddings is None else embeddings,
    )
    return found.record(found.hashes(cached=True)).fingerprint == source.fingerprint


def _has_vae(model: str, source: Source, vae: str) -> bool:
    """Whether a model of the hub was built with a VAE that has the content of this one."""
    try:
        found = resolve_source(
            model,
            revision=source.revision,
            download=False,
            vae=vae,
            loras=source.given_loras(),
            embeddings=source.given_embeddings(),
        )
        fingerprint = found.record(found.hashes(cached=True)).fingerprint
    except TGateError:  # the model is no longer in the cache
        return str(Path(vae).absolute()) == source.vae
    return fingerprint == source.fingerprint


def _allows(manifest: Manifest, width: Range, height: Range) -> bool:
    return width.opt in manifest.size.width and height.opt in manifest.size.height
