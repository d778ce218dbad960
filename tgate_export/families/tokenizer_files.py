"""What a pipeline's tokenizer folder must hold, read before any library is.

transformers makes a tokenizer of special tokens alone where the vocabulary is missing, and one
that spells in letters where the merges are.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tgate_export.common.errors import ModelError

_CONFIG = "tokenizer_config.json"
# What stands for tokenizer.json where it is missing, by the class that reads it.
_PARTS = {"CLIPTokenizer": ("vocab.json", "merges.txt")}


def check_tokenizer_files(folder: Path, class_name: str, names: Collection[str]) -> None:
    """Refuse a tokenizer without a vocabulary.

    Args:
        folder: of the tokenizer, for messages.
        class_name: "library.Class" that loads it.
        names: of its files.

    Raises:
        ModelError: names the file that is missing.
    """
    if "tokenizer.json" in names:
        return
    parts = _PARTS.get(class_name.rpartition(".")[2])
    if parts is None:
        if not any(name.endswith(".model") for name in names):
            raise ModelError(
                f"{folder} has no vocabulary (tokenizer.json, or a SentencePiece model such as "
                "spiece.model): download the model again"
            )
        return
    missing = [name for name in parts if name not in names]
    if missing:
        raise ModelError(
            f"{folder} has no vocabulary: it lacks {' and '.join(missing)}, and a tokenizer.json "
            "that would do instead: download the model again"
        )


def check_words(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer that reads nothing of an English word.

    Args:
        folder: where it is from.
        tokenizer: of transformers.

    Raises:
        ModelError: its vocabulary is empty, or another's.
    """
    known = set(tokenizer("cat", add_special_tokens=False).input_ids)
    if not known - set(tokenizer.all_special_ids):
        raise ModelError(
            f"the vocabulary in {folder} does not even know the letters of 'cat': download the "
            "model again"
        )


def longest_text(folder: Path) -> int | None:
    """Return how many tokens a tokenizer's configuration lets a text have, if it says so.

    Raises:
        ModelError: its configuration cannot be read.
    """
    file = folder / _CONFIG
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        length = config.get("model_max_length", config.get("max_len"))
        found = None if length is None else int(length)
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(f"{file} cannot be read ({error}): download the model again") from None
    if found is not None and found < 2:
        raise ModelError(f"{file}: model_max_length is {found}, expected 2 or more")
    return found
