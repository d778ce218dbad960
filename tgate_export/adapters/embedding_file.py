"""Textual inversion files: vectors that a token stands for, told by the header (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tgate_export.common.errors import InvalidRequestError, ModelError
from tgate_export.common.hints import Argument, Hint
from tgate_export.common.safetensors_header import TensorEntry, read_header

SUFFIX = ".safetensors"
MAX_TOKEN_BYTES = 256
_DTYPES = ("F64", "F32", "F16", "BF16")
# A1111's name of the tensor, which says nothing of the token.
_UNNAMED = "emb_params"
# Names of the tensors for SDXL -> whose vectors they are.
_SDXL = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


@dataclass(frozen=True)
class Embedding:
    """A textual inversion file.

    Attributes:
        path: the file.
        token: what stands for its vectors in a prompt.
        tensors: key of the tensor [vectors, width] or [width] for each text encoder.
        widths: of these tensors, by text encoder.
        vectors: how many stand for the token.
    """

    path: Path
    token: str
    tensors: Mapping[str, str]
    widths: Mapping[str, int]
    vectors: int

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens that a tokenizer gets, one for each vector, as diffusers names them."""
        return (self.token, *(f"{self.token}_{index}" for index in range(1, self.vectors)))


def open_embedding(file: str, token: str | None = None) -> Embedding:
    """Read which vectors a textual inversion file has, and for which token.

    Args:
        file: a safetensors file: `emb_params`, or one tensor under the token's name, or `clip_l`
            and `clip_g`.
        token: what stands for the vectors; when None the file's own, or else the file's name.

    Raises:
        InvalidRequestError: no such file, or a token that cannot be one.
        ModelError: a file that is damaged, of another kind, or without vectors.
    """
    path = Path(file).absolute()
    if not path.is_file():
        raise InvalidRequestError(f"embedding {file}: no such file", field="embeddings")
    if path.suffix.lower() != SUFFIX:
        raise ModelError(
            f"embedding {file} is no {SUFFIX} file, and nothing else is loaded: load it with "
            "torch.load(FILE, weights_only=True) where you trust it, and write its tensor, A1111's "
            f'["string_to_param"]["*"], as {_UNNAMED} with safetensors.torch.save_file'
        )
    entries = read_header(path).tensors
    own, tensors = _layout(path, list(entries))
    token = token if token is not None else own if own is not None else path.stem
    _check_token(path, token)
    shapes = {encoder: _shape(path, key, entries[key]) for encoder, key in tensors.items()}
    counts = {count for count, _ in shapes.values()}
    if len(counts) > 1:
        found = " and ".join(f"{key} {list(entries[key].shape)}" for key in tensors.values())
        raise ModelError(f"embedding {path} has unequal numbers of vectors: {found}")
    widths = {encoder: width for encoder, (_, width) in shapes.items()}
    return Embedding(path, token, tensors, widths, counts.pop())


def _layout(path: Path, keys: list[str]) -> tuple[str | None, dict[str, str]]:
    """Return the token that a file names, if it names one, and the keys of its vectors."""
    if set(keys) == set(_SDXL):
        return None, {encoder: key for key, encoder in _SDXL.items()}
    if len(keys) == 1 and keys[0] not in _SDXL:
        return None if keys[0] == _UNNAMED else keys[0], {"text_encoder": keys[0]}
    found = ", ".join(sorted(keys)[:3]) or "nothing"
    raise ModelError(
        f"embedding {path} is no textual inversion: expected {_UNNAMED}, one tensor under the "
        f"token's name, or {' and '.join(_SDXL)}, and it has {found[:200]}"
    )


def _check_token(path: Path, token: str) -> None:
    size = len(token.encode(errors="replace"))
    if token.isprintable() and not any(map(str.isspace, token)) and 0 < size <= MAX_TOKEN_BYTES:
        return
    raise InvalidRequestError(
        f"embedding {path}: {token!r:.60} cannot be a token, which has 1 to {MAX_TOKEN_BYTES} "
        "bytes and no spaces",
        *another_token(path),
        field="embeddings",
    )


def another_token(path: Path) -> Hint:
    """Return what to do about a token that does not do."""
    return "give another: ", Argument("embeddings", ((str(path), "TOKEN"),))


def _shape(path: Path, key: str, entry: TensorEntry) -> tuple[int, int]:
    """Return how many vectors a tensor has, and their width."""
    if entry.dtype not in _DTYPES:
        raise ModelError(f"embedding {path}: {key} is {entry.dtype}, expected floating point")
    shape = entry.shape if len(entry.shape) > 1 else (1, *entry.shape)
    if len(shape) != 2 or 0 in shape:
        raise ModelError(
            f"embedding {path}: {key} is {list(entry.shape)}, expected vectors [vectors, width]"
        )
    return shape[0], shape[1]
