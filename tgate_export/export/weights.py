"""Weights stored once: an external-data file that several graphs share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    import onnx_ir

# A page, so that every tensor can be memory-mapped where it lies.
ALIGNMENT = 4096
# Smaller tensors stay inside the graph file.
INLINE_BYTES = 1024
_BEGIN = 256  # bytes of a tensor that tell it from most others of its size
_CHUNK = 1 << 22


class Target(Protocol):
    """What weights can be written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write data, which stays as it is."""

    def flush(self) -> None:
        """Let others read what was written."""

    def close(self) -> None:
        """Finish."""


class WeightFile:
    """Writes weights of one or more graphs to one file, each distinct content once.

    Args:
        path: the file.
        stream: what writes to it; the file itself when not given.
    """

    def __init__(self, path: Path, stream: Target | None = None) -> None:
        self.path = path
        self._stream: Target = path.open("wb") if stream is None else stream
        self._position = 0
        self._known: dict[tuple[int, bytes], list[int]] = {}

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()

    def externalize(self, model: onnx_ir.Model) -> None:
        """Move a model's weights into the file, one tensor in memory at a time.

        The model's initializers then refer to the file by its name; save the model beside it.
        """
        import onnx_ir

        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes < INLINE_BYTES:
                continue
            offset, length = self.store(tensor.numpy())
            value.const_value = onnx_ir.ExternalTensor(
                location=self.path.name,
                offset=offset,
                length=length,
                dtype=tensor.dtype,
                shape=tensor.shape,
                name=value.name or "",
                base_dir=os.fspath(self.path.parent),
            )

    def store(self, array: np.ndarray) -> tuple[int, int]:
        """Write an array, unless its content is there already; return where it is, in bytes.

        It must stay as it is.
        """
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        begin = len(data), bytes(data[:_BEGIN])
        for known in self._known.get(begin, ()):
            if self._holds(known, data):
                return known, len(data)
        offset = -(-self._position // ALIGNMENT) * ALIGNMENT
        self._stream.write(bytes(offset - self._position))
        self._stream.write(data.data)
        self._known.setdefault(begin, []).append(offset)
        self._position = offset + len(data)
        return offset, len(data)

    def _holds(self, offset: int, data: np.ndarray) -> bool:
        """Whether the file has bytes [n] at an offset: faster than to hash all that is written."""
        self._stream.flush()
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(offset)
            for start in range(0, len(data), _CHUNK):
                chunk = data[start : start + _CHUNK]
                if not np.array_equal(np.frombuffer(stream.read(len(chunk)), np.uint8), chunk):
                    return False
        return True


def count_parameters(model: onnx_ir.Model) -> int:
    """Count the elements of a graph's weights: floating-point initializers that are no scalars.

    Equal weights are merged by the exporter (biases that are all zero, say), so an initializer
    counts as often as it is used.
    """
    return sum(
        int(np.prod(tensor.shape.numpy())) * len(value.uses())
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.dtype.is_floating_point()
        and len(tensor.shape) > 0
    )
