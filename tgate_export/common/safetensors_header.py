"""What the header of a safetensors file says, read with nothing but Python."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tgate_export.common.errors import ModelError
from tgate_export.common.json_file import parse_json

_MAX_HEADER = 100_000_000
_SMALL = 1 << 16  # bytes of a tensor that is read for its values
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4",
}  # fmt: skip
_BYTES = {name: np.dtype(dtype).itemsize for name, dtype in _DTYPES.items()}
_LONGEST_NAME = 500  # messages quote names


@dataclass(frozen=True)
class TensorEntry:
    """What a safetensors file's header says of a tensor.

    Attributes:
        dtype: "F32" and the like.
        shape: its sizes.
        begin: where its data begins in the file, in bytes.
        end: where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Attributes:
        tensors: by name.
        metadata: texts by name; what trainers wrote.
    """

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file, and compare the file's size with it.

    Raises:
        ModelError: no safetensors, or truncated.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if length > min(_MAX_HEADER, size):
                raise ValueError("its header is too long")
            content: dict[str, Any] = parse_json(stream.read(length).decode())
        metadata = content.pop("__metadata__", None) or {}
        if max(map(len, content), default=0) > _LONGEST_NAME:
            raise ValueError("a name is too long")
        tensors = {key: _entry(entry, 8 + length) for key, entry in content.items()}
        texts = {key: value for key, value in metadata.items() if isinstance(value, str)}
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise ModelError(f"{path} is not a safetensors file: download the model again") from None
    expected = max((tensor.end for tensor in tensors.values()), default=8 + length)
    if size != expected:
        raise ModelError(
            f"{path} is truncated: {size} bytes, its header says {expected}; "
            "download the model again"
        )
    return Header(tensors, texts)


def _entry(entry: Mapping[str, Any], start: int) -> TensorEntry:
    begin, end = (start + int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(side) for side in entry["shape"])
    dtype = str(entry["dtype"])
    if not start <= begin <= end or not all(0 <= side < 2**31 for side in shape):
        raise ValueError("a tensor lies outside the file")
    if dtype in _BYTES and math.prod(shape) * _BYTES[dtype] != end - begin:
        raise ValueError("a tensor has other bytes than its type and shape need")
    return TensorEntry(dtype, shape, begin, end)


def read_values(path: Path, entry: TensorEntry) -> NDArray[np.float32] | None:
    """Read a small tensor [n] of a file whose header was read; None for a large one."""
    dtype = _DTYPES.get(entry.dtype)
    size = entry.end - entry.begin
    if dtype is None or not 0 < size <= _SMALL or size % np.dtype(dtype).itemsize:
        return None
    return _floats(path, entry)


def read_tensor(path: Path, entry: TensorEntry) -> NDArray[np.float32]:
    """Read a tensor of numbers of a file whose header was read, in its shape.

    Raises:
        OSError: the file cannot be read.
        ValueError: its data is not of its type and shape.
    """
    return _floats(path, entry).reshape(entry.shape)


def _floats(path: Path, entry: TensorEntry) -> NDArray[np.float32]:
    if entry.dtype not in _DTYPES:
        raise ValueError(f"numbers of type {entry.dtype} are not read")
    with path.open("rb") as stream:
        stream.seek(entry.begin)
        values = np.frombuffer(stream.read(entry.end - entry.begin), _DTYPES[entry.dtype])
    if entry.dtype == "BF16":  # the upper half of an F32
        values = (values.astype("<u4") << 16).view("<f4")
    return values.astype(np.float32)
