"""A bundle's tokenizers: out of the cache, or out of transformers."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from tgate_export.build.request import BuildRequest
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.manifest import Tokenizer
from tgate_export.export.content_cache import ContentCache
from tgate_export.export.unit import tokenizer_key
from tgate_export.families.spec import TokenizerSpec

_FILE = "tokenizer.json"


def write_tokenizers(
    request: BuildRequest, cache: ContentCache, staging: Path
) -> dict[str, Tokenizer]:
    """Write a pipeline's tokenizers, each to its component's folder.

    Returns the manifest's entries, by the graph input that takes the ids.

    Raises:
        ModelError: one that cannot be loaded, or that the runtime cannot run.
    """
    return {
        spec.input: _write(request, spec, cache, staging)
        for spec in request.source.family.tokenizers(request.source)
    }


def _write(
    request: BuildRequest, spec: TokenizerSpec, cache: ContentCache, staging: Path
) -> Tokenizer:
    folder = staging / spec.component
    folder.mkdir()
    key = tokenizer_key(request.source, spec, request.hashes)
    if (record := cache.load(key, folder)) is not None and record.files.keys() == {_FILE}:
        try:
            return Tokenizer.model_validate_json(json.dumps(record.content))
        except ValidationError:
            pass
    from tgate_export.export.tokenizer import export_tokenizer
    from tgate_export.families.loading import load_tokenizer

    file = folder / _FILE
    found = export_tokenizer(spec, load_tokenizer(request.source, spec), file)
    label = f"{request.source.name} {spec.component}"
    cache.store(key, label, folder, {_FILE: hash_file(file)}, found.model_dump(mode="json"))
    return found
