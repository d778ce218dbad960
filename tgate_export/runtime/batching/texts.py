"""Prompts on their way to the text encoder, which sees each of them once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.batching.input_batch import InputBatch
from tgate_export.runtime.tokenizer import PromptTokenizer

REMEMBERED = 64  # texts; among them the empty negative prompt that most requests have


@dataclass(frozen=True)
class Text:
    """A prompt and how it is to be encoded.

    Attributes:
        inputs: the encoder's, one row of each.
        warnings: what of it was left out.
    """

    text: str
    clip_skip: int
    inputs: Mapping[str, np.ndarray] = field(compare=False, repr=False)
    warnings: tuple[str, ...] = field(compare=False)


class TextEncoder:
    """Tokenizes texts when they come, and encodes them a batch at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self._clip_skips = bundle.manifest.clip_skips
        specs = bundle.manifest.tokenizers
        with bundle.reading(*(spec.file for spec in specs.values())):
            self._tokenizers = {
                name: PromptTokenizer(bundle.file(spec.file), spec) for name, spec in specs.items()
            }
        self._encoded: OrderedDict[Text, dict[str, np.ndarray]] = OrderedDict()
        self.text = lru_cache(REMEMBERED)(self._tokenize)  # several threads may tokenize

    def _tokenize(self, text: str, clip_skip: int) -> Text:
        """Prepare a prompt for the encoder."""
        inputs: dict[str, np.ndarray] = {}
        # Not Python's own warnings: those remember every text for ever, and show it in a log.
        warnings: list[str] = []
        for name, tokenizer in self._tokenizers.items():
            ids, mask = tokenizer([text], warnings.append)
            inputs[name] = ids[0]
            if tokenizer.spec.mask is not None:
                inputs[tokenizer.spec.mask] = mask[0]
        if self._clip_skips:
            inputs["clip_skip"] = np.array(clip_skip, np.int64)
        return Text(text, clip_skip, inputs, tuple(dict.fromkeys(warnings)))

    def encode(
        self, input_batch: InputBatch, texts: Iterable[Text]
    ) -> dict[Text, dict[str, np.ndarray]]:
        """Return what the text encoder makes of each text, by its outputs' names."""
        wanted = list(dict.fromkeys(texts))
        found = {text: self._encoded[text] for text in wanted if text in self._encoded}
        new = [text for text in wanted if text not in found]
        for first in range(0, len(new), input_batch.batch):
            part = new[first : first + input_batch.batch]
            outputs = input_batch.encode([text.inputs for text in part])
            found |= dict(zip(part, outputs, strict=True))
        for text in wanted:
            self._encoded[text] = found[text]
            self._encoded.move_to_end(text)
        while len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        return found
