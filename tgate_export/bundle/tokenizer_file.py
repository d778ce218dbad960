"""Which tokenizer files a bundle may hold: the pipelines of CLIP and of T5 that a build writes.

The `tokenizers` library runs whatever pipeline a file describes: patterns that take years,
replacements that make gigabytes of a letter, tables whose sizes are made up. What varies between
models is their vocabulary.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from tgate_export.common.json_file import TABLE_BYTES, parse_json, read_regular

MAX_ENTRIES = 2**20  # of a vocabulary, and of its merges
MAX_ADDED = 4096
MAX_TOKEN_BYTES = 1024
_MAX_ID = 2**31 - 1
_MAX_NORMALIZED_BYTES = 256  # of what one character becomes; NFKC's longest has 33

_CLIP = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {
                    "Regex": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+"
                    r"|[\p{N}]|[^\s\p{L}\p{N}]+"
                },
                "behavior": "Removed",
                "invert": True,
            },
            {
                "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                "use_regex": True,
            },
        ],
    },
    "decoder": {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    },
}  # fmt: skip
_BPE = {
    "dropout": None, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
    "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
}  # fmt: skip
_METASPACE = {
    "type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True,
}  # fmt: skip
_T5 = {
    "pre_tokenizer": {
        "type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE],
    },
    "decoder": _METASPACE,
}  # fmt: skip
_LOWERCASE = [{"type": "Lowercase"}, {"type": "Strip", "strip_left": True, "strip_right": True}]


def read_tokenizer(path: Path) -> str:
    """Return the text of a tokenizer file, for the `tokenizers` library.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none that a build writes.
    """
    text = read_regular(path, TABLE_BYTES).decode()
    check_tokenizer(text)
    return text


def check_tokenizer(text: str) -> None:
    """Check that a tokenizer's JSON is one that a build writes.

    Raises:
        ValueError: says which part is not.
    """
    content = parse_json(text)
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens")
    if not isinstance(content, dict) or not content.keys() >= set(parts):
        raise ValueError("it lacks a part")
    model = content["model"]
    kind = model.get("type") if isinstance(model, dict) else None
    if kind == "BPE":
        _check_parts(content, _CLIP)
        _check_bpe(model)
        _check_clip_ends(content["post_processor"])
    elif kind == "Unigram":
        _check_parts(content, _T5)
        _check_normalizer(content["normalizer"])
        _check_unigram(model)
        _check_t5_end(content["post_processor"])
    else:
        raise ValueError("its model is neither CLIP's nor T5's")
    _check_added(content["added_tokens"])


def _check_parts(content: dict[str, Any], expected: dict[str, Any]) -> None:
    for part, value in expected.items():
        if content[part] != value:
            raise ValueError(f"its {part} is neither CLIP's nor T5's")


def _check_bpe(model: dict[str, Any]) -> None:
    for field, value in _BPE.items():
        if model.get(field, value) != value:
            raise ValueError(f"its {field} is not CLIP's")
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not 0 < len(vocab) <= MAX_ENTRIES:
        raise ValueError(f"its vocabulary is no map of 1 to {MAX_ENTRIES} tokens")
    if not all(map(_is_token, vocab)) or not all(map(_is_id, vocab.values())):
        raise ValueError("its vocabulary has a token or an id that is none")
    if len(set(vocab.values())) != len(vocab):
        raise ValueError("its vocabulary has two tokens of one id")
    if not isinstance(merges, list) or len(merges) > MAX_ENTRIES:
        raise ValueError(f"its merges are no list of at most {MAX_ENTRIES}")
    if model.get("unk_token") not in vocab:
        raise ValueError("its unknown token is not in the vocabulary")


def _check_unigram(model: dict[str, Any]) -> None:
    vocab: Any = model.get("vocab")
    unknown: Any = model.get("unk_id")
    if model.get("byte_fallback", False) is not False:
        raise ValueError("its byte_fallback is not T5's")
    if not isinstance(vocab, list) or not 0 < len(vocab) <= MAX_ENTRIES:
        raise ValueError(f"its vocabulary is no list of 1 to {MAX_ENTRIES} tokens")
    for entry in vocab:
        pair = isinstance(entry, list) and len(entry) == 2
        if not pair or not _is_token(entry[0]) or type(entry[1]) not in (int, float):
            raise ValueError("its vocabulary has an entry that is no token and its score")
    if not _is_id(unknown) or unknown >= len(vocab):
        raise ValueError("its unknown token is not in the vocabulary")


def _check_normalizer(normalizer: Any) -> None:
    """Check T5's: none or SentencePiece's table, and before it what PixArt does to captions."""
    steps: Any = [] if normalizer is None else [normalizer]
    if isinstance(normalizer, dict) and normalizer.get("type") == "Sequence":
        steps = normalizer.get("normalizers")
        if not isinstance(steps, list) or steps[:2] != _LOWERCASE:
            raise ValueError("its normalizer is neither CLIP's nor T5's")
        steps = steps[2:]
    if len(steps) > 1:
        raise ValueError("its normalizer is neither CLIP's nor T5's")
    for step in steps:
        if not isinstance(step, dict) or step.keys() != {"type", "precompiled_charsmap"}:
            raise ValueError("its normalizer is neither CLIP's nor T5's")
        _check_table(step["precompiled_charsmap"])


def _check_table(encoded: Any) -> None:
    """Check SentencePiece's table: the bytes of a trie, which follows, and texts that end in 0."""
    try:
        table = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise ValueError("its normalizer's table is not in base64") from None
    size = int.from_bytes(table[:4], "little")
    texts = table[4 + size :]
    if len(table) < 4 or not 0 < size <= len(table) - 4 or size % 4 or not texts.endswith(b"\0"):
        raise ValueError("its normalizer's table is not of the size that it says")
    if max(map(len, texts.split(b"\0"))) > _MAX_NORMALIZED_BYTES:
        raise ValueError("its normalizer makes long texts of a character")


def _check_clip_ends(processor: Any) -> None:
    ends = [processor.get(name) for name in ("cls", "sep")] if isinstance(processor, dict) else []
    plain = {"type": "RobertaProcessing", "trim_offsets": False, "add_prefix_space": False}
    if not ends or processor != plain | dict(zip(("cls", "sep"), ends, strict=True)):
        raise ValueError("its post_processor is not CLIP's")
    for end in ends:
        if (
            not isinstance(end, list)
            or len(end) != 2
            or not _is_token(end[0])
            or not _is_id(end[1])
        ):
            raise ValueError("its post_processor is not CLIP's")


def _check_t5_end(processor: Any) -> None:
    try:
        (name,) = processor["special_tokens"]
        (number,) = processor["special_tokens"][name]["ids"]
    except (TypeError, KeyError, ValueError):
        raise ValueError("its post_processor is not T5's") from None
    texts = [{"Sequence": {"id": text, "type_id": 0}} for text in "AB"]
    end = {"SpecialToken": {"id": name, "type_id": 0}}
    expected = {
        "type": "TemplateProcessing",
        "single": [texts[0], end],
        "pair": [texts[0], end, texts[1], end],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]}},
    }
    if processor != expected or not _is_token(name) or not _is_id(number):
        raise ValueError("its post_processor is not T5's")


def _check_added(added: Any) -> None:
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise ValueError(f"its added_tokens are no list of at most {MAX_ADDED}")
    for token in added:
        if not isinstance(token, dict) or not _is_token(token.get("content")):
            raise ValueError("its added_tokens have one that is none")
        if not _is_id(token.get("id")):
            raise ValueError("its added_tokens have an id that is none")


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.encode(errors="replace")) <= MAX_TOKEN_BYTES


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID
