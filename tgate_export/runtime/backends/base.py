"""The interface between the step loop and what runs graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from tgate_export.errors import TGateError
from tgate_export.runtime.plan import BufferSpec, Launch, Slot

Execute = Callable[[], None]


class BackendError(TGateError):
    """A backend is not installed, cannot run here, or failed to load a graph."""


class Memory(ABC):
    """The buffers of one run shape, allocated once on the backend's device."""

    @abstractmethod
    def write(self, slot: Slot, value: np.ndarray) -> None:
        """Copy a host array of the slot's shape and dtype into the slot."""

    @abstractmethod
    def read(self, slot: Slot) -> np.ndarray:
        """Return a copy of a slot's contents on the host."""


class Backend(ABC):
    """Loads the graphs of one bundle and runs them on bound buffers."""

    name: str

    @abstractmethod
    def load(self, graph: str) -> None:
        """Make a graph ready to run; does nothing when it already is.

        Raises:
            BackendError: names the graph that cannot be loaded, and why.
        """

    @abstractmethod
    def allocate(self, buffers: Mapping[str, BufferSpec]) -> Memory:
        """Allocate zeroed buffers."""

    @abstractmethod
    def prepare(self, launch: Launch, memory: Memory) -> Execute:
        """Bind a launch's tensors; the result runs it, and returns when it has ended."""
