"""Tokenizers for random weights, which know no words: they spell in bytes or letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource
    from tgate_export.families.spec import TokenizerSpec


def random_tokenizer(spec: TokenizerSpec, source: ModelSource) -> Any:
    """Return a tokenizer of the class that `spec` names, with the encoder's vocabulary size."""
    if spec.class_name.endswith(".T5Tokenizer"):
        return letter_tokenizer()
    size = source.config(spec.encoder)["vocab_size"]
    return byte_tokenizer(size, spec.max_length)


def letter_tokenizer() -> Any:
    """Return a T5 tokenizer that spells every word in ASCII characters."""
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(chr(code), -3.0) for code in range(ord("!"), ord("~") + 1)]
    return T5Tokenizer(vocab=[*special, *letters], extra_ids=0)


def byte_tokenizer(vocabulary_size: int, max_length: int, **special: str) -> Any:
    """Return a CLIP tokenizer that spells every word in bytes.

    Args:
        vocabulary_size: of the text encoder; its last two ids are the start and the end.
        max_length: tokens that the text encoder takes.
        **special: other special tokens than CLIP's own, such as `pad_token`.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary["<|startoftext|>"] = vocabulary_size - 2
    vocabulary["<|endoftext|>"] = vocabulary_size - 1
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length, **special)
