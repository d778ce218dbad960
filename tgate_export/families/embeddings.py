"""Textual inversion files that a model is built with (no torch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgate_export.adapters.embedding_file import Embedding, another_token, open_embedding
from tgate_export.bundle.hashing import hash_file
from tgate_export.bundle.manifest import AddedEmbedding, File
from tgate_export.bundle.tokenizer_file import MAX_ADDED
from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument

if TYPE_CHECKING:
    from tgate_export.families.source import ModelSource

# A textual inversion file and the token that stands for its vectors; the file's own when None.
GivenEmbedding = tuple[str, str | None]


def with_embeddings(source: ModelSource, given: Sequence[GivenEmbedding]) -> ModelSource:
    """Return a model that knows the tokens of textual inversion files.

    Args:
        source: the model.
        given: the files, in the order in which their tokens are added.

    Raises:
        InvalidRequestError: no such file, the same file or token twice, a token that cannot be one,
            or a model that takes none.
        ModelError: a file that cannot be read, or is for another model.
    """
    embeddings = tuple(open_embedding(file, token) for file, token in given)
    if embeddings and not source.family.embeddings:
        raise InvalidRequestError(
            f"{source.model}: textual inversions are for Stable Diffusion and SDXL, and this is "
            f"{source.family.title}",
            "leave ",
            Argument("embeddings"),
            " out",
            field="embeddings",
        )
    seen: set[Path] = set()
    for embedding in embeddings:
        if (real := embedding.path.resolve()) in seen:
            raise InvalidRequestError(
                f"embedding {embedding.path} is given twice", field="embeddings"
            )
        seen.add(real)
        _check(source, embedding)
    _check_apart(embeddings)
    return replace(source, embeddings=embeddings)


def _check(source: ModelSource, embedding: Embedding) -> None:
    """Refuse a file for another model, and one whose vectors no prompt can hold."""
    specs = source.family.tokenizers(source)
    encoders = [spec.encoder for spec in specs]
    if set(embedding.tensors) != set(encoders):
        raise ModelError(
            f"embedding {embedding.path} is not for this model: it has vectors for "
            f"{_number(len(embedding.tensors))} ({', '.join(embedding.tensors.values())}), and "
            f"{source.family.title} has {_number(len(encoders))}"
        )
    for spec in specs:
        width = source.config(spec.encoder).get("hidden_size")
        found = embedding.widths[spec.encoder]
        if width not in (None, found):
            raise ModelError(
                f"embedding {embedding.path} is not for this model: its vectors have width "
                f"{found}, and the model's {spec.encoder} reads width {width}"
            )
        if embedding.vectors > (most := spec.max_length - 2):
            raise ModelError(
                f"embedding {embedding.path} has {embedding.vectors} vectors, and a prompt holds "
                f"{most} tokens"
            )


def _number(encoders: int) -> str:
    return "one text encoder" if encoders == 1 else f"{encoders} text encoders"


def _check_apart(embeddings: Sequence[Embedding]) -> None:
    """Refuse tokens that would be read for one another: prompts are read in lower case."""
    for first in embeddings:
        for second in embeddings:
            if first is second:
                continue
            token, other = first.token.lower(), second.token.lower()
            several = [name.lower() for name in first.tokens]
            # What a token stands for is put in place of its letters, wherever they are.
            if other in (*several, f"{token}_{first.vectors}") or (
                first.vectors > 1 and token in other
            ):
                raise InvalidRequestError(
                    f"embedding {second.path}: its token {second.token!r} would be read for "
                    f"{first.token!r} of {first.path.name}",
                    *another_token(second.path),
                    field="embeddings",
                )


def add_tokens(tokenizer: Any, embeddings: Sequence[Embedding]) -> dict[str, int]:
    """Add the tokens of textual inversions to a tokenizer of transformers; return their ids.

    Raises:
        InvalidRequestError: it has one of them already.
        ModelError: they are more than a tokenizer may have.
    """
    known = {token.lower() for token in tokenizer.added_tokens_encoder}
    vocabulary = tokenizer.get_vocab()
    for embedding in embeddings:
        for token in (*embedding.tokens, f"{embedding.token}_{embedding.vectors}"):
            # Prompts are lowercased before they are looked up.
            if {token, token.lower()} & vocabulary.keys() or token.lower() in known:
                raise InvalidRequestError(
                    f"embedding {embedding.path}: the model's tokenizer has the token {token!r} "
                    "already",
                    *another_token(embedding.path),
                    field="embeddings",
                )
    tokens = [token for embedding in embeddings for token in embedding.tokens]
    if len(known) + len(tokens) > MAX_ADDED:
        raise ModelError(
            f"embeddings: {len(tokens)} tokens and the {len(known)} that the tokenizer has added "
            f"are more than {MAX_ADDED}"
        )
    tokenizer.add_tokens(tokens)
    return {token: int(tokenizer.convert_tokens_to_ids(token)) for token in tokens}


def token_names(embeddings: Sequence[Embedding]) -> list[tuple[str, ...]]:
    """Return what a tokenizer depends on, beside its own files."""
    return [embedding.tokens for embedding in embeddings]


def added(
    embeddings: Sequence[Embedding], hashes: Mapping[Path, File]
) -> tuple[AddedEmbedding, ...]:
    """Return what the manifest says of textual inversion files."""
    return tuple(
        AddedEmbedding(
            file=str(embedding.path), sha256=hashes[embedding.path].sha256, token=embedding.token
        )
        for embedding in embeddings
    )


def are_added(given: Sequence[GivenEmbedding], recorded: Sequence[AddedEmbedding]) -> bool:
    """Whether files and tokens are those that a bundle was built with, wherever they lie."""
    embeddings = [open_embedding(file, token) for file, token in given]
    found = [(hash_file(embedding.path).sha256, embedding.token) for embedding in embeddings]
    return found == [(embedding.sha256, embedding.token) for embedding in recorded]
