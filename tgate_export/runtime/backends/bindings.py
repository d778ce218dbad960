"""Whether a buffer may be bound to a tensor of a compiled graph. Pure, no devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tgate_export.runtime.backends.base import BackendError

Direction = Literal["input", "output"]
# What TensorRT asks of an address; `cudaMalloc` gives no less.
ALIGNMENT = 256


@dataclass(frozen=True)
class Port:
    """An input or output as the compiled graph declares it; -1 is a dimension that is free."""

    direction: Direction
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class View:
    """Device memory with the type that its owner gave it; 0 is no address."""

    dtype: str
    shape: tuple[int, ...]
    address: int


def check_bindings(
    graph: str, ports: Mapping[str, Port], views: Mapping[Direction, Mapping[str, View]]
) -> dict[str, int]:
    """Match every tensor of a compiled graph with a buffer; return addresses by tensor.

    The only way from a buffer to a launch: `full`'s caches out, `gated`'s caches in, and all else.

    Raises:
        BackendError: names the first tensor that does not fit: direction, dtype, shape or pointer.
    """
    addresses: dict[str, int] = {}
    for direction, bound in views.items():
        for tensor, view in bound.items():
            _check_binding(graph, tensor, ports.get(tensor), direction, view)
            addresses[tensor] = view.address
    if unbound := sorted(ports.keys() - addresses.keys()):
        raise _misfit(graph, unbound[0], "nothing is bound to it")
    return addresses


def _check_binding(
    graph: str, tensor: str, port: Port | None, direction: Direction, view: View
) -> None:
    if port is None:
        raise _misfit(graph, tensor, "the plan has no tensor of that name")
    if port.direction != direction:
        raise _misfit(graph, tensor, f"it is an {port.direction} of the plan, not an {direction}")
    if port.dtype != view.dtype:
        raise _misfit(graph, tensor, f"the plan has {port.dtype}, the buffer {view.dtype}")
    if len(port.shape) != len(view.shape) or any(
        want not in (-1, have) for want, have in zip(port.shape, view.shape, strict=True)
    ):
        raise _misfit(
            graph, tensor, f"the plan has shape {list(port.shape)}, the buffer {list(view.shape)}"
        )
    if view.address <= 0 or view.address % ALIGNMENT:
        raise _misfit(
            graph, tensor, f"address {view.address:#x} is not a multiple of {ALIGNMENT} above 0"
        )


def _misfit(graph: str, tensor: str, reason: str) -> BackendError:
    return BackendError(f"graph {graph!r}: tensor {tensor!r} cannot be bound: {reason}")
