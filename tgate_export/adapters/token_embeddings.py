"""Textual inversions' vectors in a text encoder (torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tgate_export.adapters.embedding_file import Embedding
from tgate_export.common.errors import ModelError, first_line
from tgate_export.common.safetensors_header import read_header, read_tensor


def add_vectors(
    module: nn.Module, component: str, embeddings: Iterable[Embedding], ids: Mapping[str, int]
) -> None:
    """Add rows to a text encoder's embedding of tokens, as diffusers' `load_textual_inversion`.

    Args:
        module: the text encoder; its table of tokens is replaced, and not written in place.
        component: its name.
        embeddings: the files.
        ids: of their tokens, as the tokenizer gives them.

    Raises:
        ModelError: a file of another width, or with numbers that are not finite.
    """
    table: Any = module.get_input_embeddings()  # type: ignore[operator]
    old = table.weight.data
    rows = max(len(old), 1 + max(ids.values()))
    new = old.new_zeros(rows, old.shape[1])
    new[: len(old)] = old
    for embedding in embeddings:
        vectors = _vectors(embedding, embedding.tensors[component]).to(old.dtype)
        if vectors.shape[1] != old.shape[1]:
            raise ModelError(
                f"embedding {embedding.path} is not for this model: its vectors have width "
                f"{vectors.shape[1]}, and the model's {component} reads width {old.shape[1]}"
            )
        if not vectors.isfinite().all():
            raise ModelError(
                f"embedding {embedding.path}: {embedding.tensors[component]} has infinite numbers "
                "or what is no number"
            )
        new[[ids[token] for token in embedding.tokens]] = vectors
    table.weight = nn.Parameter(new, requires_grad=False)
    table.num_embeddings = rows


def _vectors(embedding: Embedding, key: str) -> torch.Tensor:
    try:
        entry = read_header(embedding.path).tensors[key]
        return torch.from_numpy(read_tensor(embedding.path, entry)).reshape(embedding.vectors, -1)
    except (OSError, KeyError, ValueError) as error:
        raise ModelError(f"cannot load embedding {embedding.path}: {first_line(error)}") from error
