"""Prompts to token ids, exactly as diffusers prepares them for CLIP."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tgate_export.bundle.manifest import Tokenizer as TokenizerSpec
from tgate_export.errors import BundleError


class PromptTokenizer:
    """Loads `tokenizer.json` and pads or truncates prompts to the text encoder's length."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path} is not a tokenizer file: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._spec = spec

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Return token ids [B, T] int64; warns of text that does not fit."""
        length = self._spec.max_length
        rows = np.full((len(prompts), length), self._spec.pad_token_id, dtype=np.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            ids = self._tokenizer.encode(prompt).ids
            if len(ids) > length:
                removed = self._tokenizer.decode(ids[length - 1 : -1]).replace("</w>", " ").strip()
                warnings.warn(
                    f"the prompt is longer than the {length} tokens that the text encoder takes; "
                    f"this part was left out: {removed!r}",
                    stacklevel=3,
                )
                ids = [*ids[: length - 1], self._spec.eos_token_id]
            row[: len(ids)] = ids
        return rows
