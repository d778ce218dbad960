"""Prompts on their way to the prompt encoder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tgate_export.bundle.integrity import Bundle
from tgate_export.runtime.backends.base import Row
from tgate_export.runtime.image_state import ImageState
from tgate_export.runtime.input_batch import InputBatch
from tgate_export.runtime.prompt_chunks import EncoderRun, encoder_runs, joined
from tgate_export.runtime.prompt_syntax import read_a1111
from tgate_export.runtime.prompts import SYNTAX, encoder_rows, encoder_values, missing_chunks
from tgate_export.runtime.tokenizer import PromptTokenizer

REMEMBERED = 64  # texts; among them the empty negative prompt that most requests have


@dataclass(frozen=True)
class EncoderInput:
    """A prompt as the encoder takes it.

    Attributes:
        key: equal for equal prompts: a text, how it is read, and the parameters that the encoder
            takes.
        runs: of the encoder.
        warnings: what of it was left out.
        recurs: an equal one may come again.
        given: rows of the encoder's outputs that come before those of the runs.
    """

    key: Hashable
    runs: tuple[EncoderRun, ...] = field(compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    recurs: bool = field(default=True, compare=False)
    given: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)


class TextEncoder:
    """Tokenizes texts when they come, and encodes equal ones once, a batch at a time."""

    def __init__(self, bundle: Bundle, *, remember: int = 0) -> None:
        """Read the bundle's tokenizers.

        Args:
            bundle: whose they are.
            remember: how many encoded texts to keep for calls to come.
        """
        self._manifest = bundle.manifest
        specs = bundle.manifest.tokenizers
        with bundle.reading(*(spec.file for spec in specs.values())):
            self._tokenizers = {
                name: PromptTokenizer(bundle.file(spec.file), spec) for name, spec in specs.items()
            }
        self._remember = remember
        self._encoded: OrderedDict[EncoderInput, dict[str, Row]] = OrderedDict()
        self._tokenized = lru_cache(REMEMBERED)(self._tokenize)  # several threads may tokenize

    def inputs(self, image: ImageState) -> dict[str, EncoderInput]:
        """Prepare an image's prompts for the encoder, by the prefix of what it makes of them."""
        return {
            prefix: self._input(prompt, image, negative=bool(prefix))
            for prefix, prompt in image.prompts.items()
        }

    def _input(
        self, prompt: str | dict[str, np.ndarray], image: ImageState, *, negative: bool
    ) -> EncoderInput:
        syntax = image.request.values.get(SYNTAX, ("plain",) * image.request.images)[image.index]
        own = {name: (each[image.index],) for name, each in image.request.values.items()}
        found = encoder_values(self._manifest, own, negative=negative)
        values = tuple((name, each[0]) for name, each in found.items())
        if isinstance(prompt, str):
            return self._tokenized(prompt, values, syntax)
        if missing := missing_chunks(self._manifest, prompt):
            empty = self._tokenized("", values, "plain")
            return EncoderInput(object(), empty.runs * missing, recurs=False, given=prompt)
        return EncoderInput(object(), (EncoderRun(prompt),), recurs=False)

    def _tokenize(
        self, text: str, values: tuple[tuple[str, Any], ...], syntax: str
    ) -> EncoderInput:
        # Not Python's own warnings: those remember every text for ever, and show it in a log.
        warnings: list[str] = []
        runs: tuple[EncoderRun, ...]
        if syntax == "plain":
            rows = encoder_rows(
                self._manifest, self._tokenizers, [text], {name: [value] for name, value in values},
                warn=warnings.append,
            )  # fmt: skip
            runs = (EncoderRun({name: row[0] for name, row in rows.items()}),)
        else:
            runs = encoder_runs(
                self._manifest, self._tokenizers, read_a1111(text), dict(values), warnings.append
            )
        return EncoderInput((text, values, syntax), runs, tuple(dict.fromkeys(warnings)))

    def encode(
        self, input_batch: InputBatch, prompts: Iterable[EncoderInput]
    ) -> dict[EncoderInput, dict[str, Row]]:
        """Return what the encoder makes of each prompt, by its outputs' names."""
        wanted = list(dict.fromkeys(prompts))
        found = {prompt: self._encoded[prompt] for prompt in wanted if prompt in self._encoded}
        new = {prompt: list[Mapping[str, Row]]() for prompt in wanted if prompt not in found}
        runs = [(made, run.inputs) for prompt, made in new.items() for run in prompt.runs]
        batch = input_batch.shape.batch
        for first in range(0, len(runs), batch):
            part = runs[first : first + batch]
            outputs = input_batch.encode([inputs for _, inputs in part])
            for (made, _), output in zip(part, outputs, strict=True):
                made.append(output)
        for prompt, made in new.items():
            found[prompt] = joined(self._manifest, prompt.runs, made, prompt.given)
        for prompt in wanted if self._remember else ():
            if not prompt.recurs:
                continue
            self._encoded[prompt] = found[prompt]
            self._encoded.move_to_end(prompt)
        while len(self._encoded) > self._remember:
            self._encoded.popitem(last=False)
        return found
