"""One tokenizer of transformers to a file that the runtime reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Tokenizer
from tgate_export.bundle.tokenizer_file import check_tokenizer
from tgate_export.common.errors import ModelError
from tgate_export.families.spec import TokenizerSpec


def export_tokenizer(spec: TokenizerSpec, tokenizer: Any, file: Path) -> Tokenizer:
    """Write a tokenizer, and return the manifest's entry of it.

    Args:
        spec: what the family says of it.
        tokenizer: transformers' own.
        file: what to write.

    Raises:
        ModelError: it is none that the runtime can run.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers.normalizers import Lowercase, Sequence, Strip

    backend = Backend.from_str(tokenizer.backend_tokenizer.to_str())
    if spec.lowercase:
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = Sequence([Lowercase(), Strip(), *rest])
    # Its own save() hides a full disk behind a bare Exception.
    text = backend.to_str(pretty=True)
    try:
        check_tokenizer(text)
    except ValueError as error:
        raise ModelError(
            f"the tokenizer in {spec.component} is none that can be run: {error}"
        ) from None
    file.write_text(text, encoding="utf-8")
    return Tokenizer(
        file=f"{spec.component}/tokenizer.json",
        max_length=spec.max_length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        columns=spec.columns,
    )
