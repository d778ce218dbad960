"""Prompts of several runs of the text encoder, of which some tokens have weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tgate_export.bundle.manifest import Manifest
from tgate_export.bundle.origins import FromMask, FromParameter, FromTokens
from tgate_export.runtime.backends.base import Row
from tgate_export.runtime.prompt_syntax import Piece
from tgate_export.runtime.tokenizer import PromptTokenizer

# A chunk that ends in the middle of a phrase ends after its last comma instead, if that is one of
# so many last tokens.
_COMMA_WITHIN = 20


@dataclass
class Chunk:
    """Tokens between a start and an end, and their weights."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, ids: Sequence[int], weight: float) -> None:
        """Append tokens of one weight."""
        self.ids += ids
        self.weights += [weight] * len(ids)

    def split(self, length: int) -> Chunk:
        """Return what comes after so many tokens, and leave it out here."""
        rest = Chunk(self.ids[length:], self.weights[length:])
        del self.ids[length:], self.weights[length:]
        return rest


def split_chunks(
    tokenizer: PromptTokenizer, pieces: Sequence[Piece], most: int
) -> tuple[list[Chunk], str]:
    """Fill chunks with a prompt's tokens, as A1111 does.

    Args:
        tokenizer: of the text encoder.
        pieces: of the prompt.
        most: chunks; there is at least one.

    Returns:
        the chunks, and the text that did not fit.
    """
    room = tokenizer.spec.max_length - 2
    chunks: list[Chunk] = []
    chunk, comma = Chunk(), None
    for number, piece in enumerate(pieces):
        if piece.text is None:
            if len(chunks) < most:
                chunks.append(chunk)
                chunk, comma = Chunk(), None
            continue
        groups = tokenizer.groups(piece.text, most * (room + 2))
        for index, group in enumerate(groups):
            if group == [tokenizer.comma]:
                comma = len(chunk.ids)
            elif len(chunk.ids) == room and comma is not None and room - comma <= _COMMA_WITHIN:
                rest = chunk.split(comma + 1)
                chunks.append(chunk)
                chunk, comma = rest, None
            for part in [group] if len(group) <= room else [[one] for one in group]:
                if len(chunk.ids) + len(part) > room and len(chunks) < most:
                    chunks.append(chunk)
                    chunk, comma = Chunk(), None
                if len(chunks) == most:
                    left = [*chunk.ids, *(one for each in groups[index:] for one in each)]
                    more = "".join(each.text or " " for each in pieces[number + 1 :])
                    return chunks, f"{tokenizer.text(left)} {more}".strip()
                chunk.add(part, piece.weight)
    if chunk.ids or not chunks:
        chunks.append(chunk)
    return chunks, ""


@dataclass(frozen=True)
class EncoderRun:
    """What the text encoder reads for a chunk, and what becomes of what it makes of it.

    Attributes:
        inputs: the encoder's, one row of each.
        weights: of the tokens that each tokenizer's ids are [T] f64; none where all are 1.
    """

    inputs: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)


def encoder_runs(
    manifest: Manifest,
    tokenizers: Mapping[str, PromptTokenizer],
    pieces: Sequence[Piece],
    values: Mapping[str, object],
    warn: Callable[[str], None],
) -> tuple[EncoderRun, ...]:
    """Return the runs of the text encoder for a prompt, as many as divide the bundle's chunks.

    Args:
        manifest: the bundle's.
        tokenizers: its own, by name.
        pieces: of the prompt.
        values: of the parameters that the encoder takes.
        warn: told of what is left out.
    """
    most = manifest.prompt_chunks
    found: dict[str, list[Chunk]] = {}
    for name, tokenizer in tokenizers.items():
        found[name], left_out = split_chunks(tokenizer, pieces, most)
        if left_out:
            room = tokenizer.spec.max_length - 2
            warn(
                f"the prompt is longer than {_chunks(most)} of {room} tokens that this bundle was "
                f"built for (prompt_chunks); this part was left out: {left_out!r}"
            )
    number = filled_up(max(map(len, found.values())), most)
    for chunks in found.values():
        chunks += [Chunk() for _ in range(number - len(chunks))]
    return tuple(
        _run(manifest, tokenizers, {name: chunks[index] for name, chunks in found.items()}, values)
        for index in range(number)
    )


def filled_up(chunks: int, most: int) -> int:
    """Return how many chunks there are with those of the empty text that fill a prompt up.

    Repeated, they are `most`: the smallest divisor of it that is no less than `chunks`.
    """
    return next(number for number in range(chunks, most + 1) if most % number == 0)


def joined(
    manifest: Manifest,
    runs: Sequence[EncoderRun],
    made: Sequence[Mapping[str, Row]],
    given: Mapping[str, np.ndarray],
) -> dict[str, Row]:
    """Return what the denoiser reads of a prompt, by the encoder's outputs.

    Attention over tokens that are all repeated equally often is attention over the tokens.

    Args:
        manifest: the bundle's.
        runs: of the encoder.
        made: what each gave.
        given: what the prompt begins with that was encoded before, if anything.
    """
    found = {**made[0], **given}
    for name, most in manifest.chunks.items():
        if most == 1 and not runs[0].weights:
            continue  # it stays on its device
        parts = [given[name]] if given else []
        for run, each in zip(runs, made, strict=True):
            parts.append(_weighted(manifest, np.asarray(each[name]), run.weights))
        whole = np.concatenate(parts)
        found[name] = np.tile(whole, (most * len(parts[-1]) // len(whole), 1))
    return found


def _run(
    manifest: Manifest,
    tokenizers: Mapping[str, PromptTokenizer],
    chunks: Mapping[str, Chunk],
    values: Mapping[str, object],
) -> EncoderRun:
    inputs: dict[str, np.ndarray] = {}
    for tensor in manifest.graph(manifest.prompt_encoder).inputs:
        origin = tensor.origin
        if isinstance(origin, FromTokens):
            inputs[tensor.name] = tokenizers[origin.tokens].framed(chunks[origin.tokens].ids)
        elif isinstance(origin, FromMask):
            length = tokenizers[origin.mask].spec.max_length
            inputs[tensor.name] = (np.arange(length) < len(chunks[origin.mask].ids) + 2).astype(
                np.int64
            )
        elif isinstance(origin, FromParameter):
            inputs[tensor.name] = np.array(values[origin.parameter], tensor.dtype)
    weights = {}
    if any(weight != 1 for chunk in chunks.values() for weight in chunk.weights):
        for name, chunk in chunks.items():
            weights[name] = np.ones(tokenizers[name].spec.max_length)
            weights[name][1 : 1 + len(chunk.ids)] = chunk.weights
    return EncoderRun(inputs, weights)


def _weighted(
    manifest: Manifest, tokens: np.ndarray, weights: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Multiply tokens [T, D] with their weights; the mean of each encoder's stays as it was."""
    if not weights:
        return tokens
    found = np.empty(tokens.shape)
    for name, each in weights.items():
        columns = slice(*manifest.tokenizers[name].columns or (0, 0))
        before = tokens[:, columns].astype(np.float64)
        after = before * each[:, None]
        mean = after.mean()
        found[:, columns] = after * (before.mean() / mean if mean else 1.0)
    largest = np.finfo(tokens.dtype).max
    return found.clip(-largest, largest).astype(tokens.dtype)


def _chunks(number: int) -> str:
    return "the chunk" if number == 1 else f"the {number} chunks"
