"""Prompts to token ids, exactly as diffusers prepares them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tgate_export.bundle.manifest import Tokenizer as TokenizerSpec
from tgate_export.bundle.tokenizer_file import read_tokenizer
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def _unreadable(reason: str) -> TGateError:
    return InvalidRequestError(f"the tokenizer cannot read the prompt: {reason}")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


class PromptTokenizer:
    """Loads `tokenizer.json` and pads or truncates prompts to the text encoder's length."""

    def __init__(self, path: Path, spec: TokenizerSpec) -> None:
        from tokenizers import Tokenizer

        def broken(reason: str) -> TGateError:
            return BundleError(f"{path} is not a tokenizer file: {reason}: build the bundle again")

        with _library_errors(broken):
            self._tokenizer = Tokenizer.from_str(read_tokenizer(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vectors = _several_vectors(self._tokenizer)
        self.spec = spec
        self.comma: int | None = self._tokenizer.token_to_id(",</w>")

    def __call__(
        self, prompts: Sequence[str], warn: Callable[[str], None] = _warn
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return token ids [B, T] int64 and their mask [B, T] int64, 0 where a row is padded.

        Args:
            prompts: any text; equal to what diffusers gives its tokenizer.
            warn: is told of text that does not fit.
        """
        length = self.spec.max_length
        rows = np.full((len(prompts), length), self.spec.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(rows)
        for index, prompt in enumerate(prompts):
            with _library_errors(_unreadable):
                ids = self._encode(prompt, length)
            if len(ids) > length:
                removed = self.text(ids[length - 1 : -1])
                warn(
                    f"the prompt is longer than the {length} tokens that the text encoder takes; "
                    f"this part was left out: {removed!r}"
                )
                ids = [*ids[: length - 1], self.spec.eos_token_id]
            rows[index, : len(ids)] = ids
            mask[index, : len(ids)] = 1
        return rows, mask

    def groups(self, text: str, most: int) -> list[list[int]]:
        """Return the ids of a text without a start and an end, those together that belong together.

        Args:
            text: any; the vectors of one textual inversion belong together.
            most: tokens that can be of use.

        Raises:
            InvalidRequestError: a text that the tokenizer cannot read.
        """
        with _library_errors(_unreadable):
            ids = self._encode(text, most)[1:-1]
            wholes = {
                number: self._tokenizer.encode(all_of_it, add_special_tokens=False).ids
                for number, (_, all_of_it) in self._vectors.items()
                if number in ids
            }
        found, first = [], 0
        while first < len(ids):
            whole = wholes.get(ids[first], [])
            last = first + (len(whole) if ids[first : first + len(whole)] == whole else 0)
            found.append(ids[first : max(last, first + 1)])
            first += len(found[-1])
        return found

    def framed(self, ids: Sequence[int]) -> np.ndarray:
        """Return a row [T] int64 of ids, with a start and an end, and padded."""
        row = np.full(self.spec.max_length, self.spec.pad_token_id, dtype=np.int64)
        framed = [self._start, *ids, self.spec.eos_token_id]
        row[: len(framed)] = framed
        return row

    @cached_property
    def _start(self) -> int:
        """The id that every text begins with."""
        ids: list[int] = self._tokenizer.encode("").ids
        return ids[0]

    def text(self, ids: Sequence[int]) -> str:
        """Return what ids stand for."""
        with _library_errors(_unreadable):
            return _readable(self._tokenizer.decode(list(ids)))

    def _encode(self, prompt: str, most: int) -> list[int]:
        ids: list[int] = self._tokenizer.encode(prompt).ids
        found = [self._vectors[token] for token in dict.fromkeys(ids) if token in self._vectors]
        if found:
            for token, all_of_it in found:
                # What comes after as many tokens is left out.
                prompt = prompt.replace(token, all_of_it, most)
            ids = self._tokenizer.encode(prompt).ids
        return ids


def _readable(decoded: str) -> str:
    return decoded.replace("</w>", " ").strip()


def _several_vectors(tokenizer: Tokenizer) -> dict[int, tuple[str, str]]:
    """Return the tokens of textual inversions that stand for several vectors.

    `<cat>` stands for `<cat> <cat>_1 <cat>_2` where those were added to the vocabulary, too; see
    `TextualInversionLoaderMixin.maybe_convert_prompt` of diffusers, which only pipelines with CLIP
    have.

    Returns:
        by the token's id, what is replaced in a prompt, and by what.
    """
    from tokenizers.models import BPE

    if not isinstance(tokenizer.model, BPE):
        return {}
    decoder = tokenizer.get_added_tokens_decoder()
    added = {token.content: number for number, token in decoder.items()}
    found = {}
    for token, number in added.items():
        vectors = [token]
        while (following := f"{token}_{len(vectors)}") in added:
            vectors.append(following)
        if len(vectors) > 1:
            found[number] = (token, " ".join(vectors))
    return found


@contextmanager
def _library_errors(make: Callable[[str], TGateError]) -> Iterator[None]:
    """Turn the errors of the library, which raises bare Exceptions and panics, into ours."""
    try:
        yield
    except BaseException as error:
        # A panic of Rust is no Exception, and of a module that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise make(first_line(error)) from None
