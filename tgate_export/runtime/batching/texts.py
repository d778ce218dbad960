"""Prompts on their way to the text encoder, which sees each of them once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.batching.input_batch import InputBatch
from tgate_export.runtime.prompts import encoder_rows, encoder_values
from tgate_export.runtime.request import Request
from tgate_export.runtime.tokenizer import PromptTokenizer

REMEMBERED = 64  # texts; among them the empty negative prompt that most requests have


@dataclass(frozen=True)
class Text:
    """A prompt and how it is to be encoded.

    Attributes:
        values: of the parameters that the encoder takes.
        inputs: the encoder's, one row of each.
        warnings: what of it was left out.
    """

    text: str
    values: tuple[tuple[str, Any], ...]
    inputs: Mapping[str, np.ndarray] = field(compare=False, repr=False)
    warnings: tuple[str, ...] = field(compare=False)


class TextEncoder:
    """Tokenizes texts when they come, and encodes them a batch at a time."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        specs = bundle.manifest.tokenizers
        with bundle.reading(*(spec.file for spec in specs.values())):
            self._tokenizers = {
                name: PromptTokenizer(bundle.file(spec.file), spec) for name, spec in specs.items()
            }
        self._encoded: OrderedDict[Text, dict[str, np.ndarray]] = OrderedDict()
        self._tokenized = lru_cache(REMEMBERED)(self._tokenize)  # several threads may tokenize

    def text(self, text: str, request: Request, index: int, *, negative: bool) -> Text:
        """Prepare one of a request's prompts for the encoder."""
        own = {name: (each[index],) for name, each in request.values.items()}
        found = encoder_values(self._manifest, own, negative=negative)
        values = tuple((name, each[0]) for name, each in found.items())
        return self._tokenized(text, values)

    def _tokenize(self, text: str, values: tuple[tuple[str, Any], ...]) -> Text:
        # Not Python's own warnings: those remember every text for ever, and show it in a log.
        warnings: list[str] = []
        rows = encoder_rows(
            self._manifest, self._tokenizers, [text], {name: [value] for name, value in values},
            warn=warnings.append,
        )  # fmt: skip
        inputs = {name: row[0] for name, row in rows.items()}
        return Text(text, values, inputs, tuple(dict.fromkeys(warnings)))

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
