"""The interface between the step loop and what runs graphs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from time import perf_counter
from typing import Any, Literal, get_args

import numpy as np

from tgate_export.common.errors import InvalidRequestError, TGateError
from tgate_export.runtime.plan import BindingPlan, Launch
from tgate_export.runtime.turns import Turns

Execute = Callable[[], None]
RunPrecision = Literal["fp32", "bf16"]


class BackendError(TGateError):
    """A backend is not installed, cannot run here, or failed to load a graph."""


@dataclass(frozen=True)
class BackendOptions:
    """What a caller can choose about how a bundle runs; a backend takes some, see `BackendSpec`.

    A field's metadata has its line of help.

    Attributes:
        precision: to compute in, whatever the bundle's weights are stored in; fp32 when None,
            since bf16 gives slightly different pictures.
        cuda_graphs: capture each launch once and replay it, instead of enqueueing it every time.
        weight_streaming_budget: bytes of weights that each plan may keep on the GPU, the others
            being streamed from the host; all of them when None. Needs plans built for it.
        threads: that share the work of one graph on the CPU; when None as many as the backend
            likes, or as a container's CPU quota has processors.
    """

    cuda_graphs: bool = field(
        default=True, metadata={"help": "Capture each launch once, and replay it."}
    )
    weight_streaming_budget: int | None = field(
        default=None,
        metadata={
            "help": "Weights of each plan that may stay on the GPU, for plans built to stream "
            "them. Default: all."
        },
    )
    precision: RunPrecision | None = field(
        default=None,
        metadata={
            "help": "What to compute in. bf16: up to twice as fast on a CPU that has it, and "
            "slightly different pictures. Default: fp32."
        },
    )
    threads: int | None = field(
        default=None,
        metadata={
            "help": "Threads on a CPU. Default: as many as the backend likes, or as a container's "
            "CPU quota has processors."
        },
    )

    def __post_init__(self) -> None:
        """Refuse what no backend knows."""
        if self.precision not in (None, *get_args(RunPrecision)):
            raise InvalidRequestError(
                f"unknown precision {self.precision!r}: choose one of "
                f"{', '.join(get_args(RunPrecision))}"
            )
        if self.threads is not None and self.threads < 1:
            raise InvalidRequestError(f"threads must be 1 or more, got {self.threads}")

    def given(self) -> dict[str, Any]:
        """Return the options that are not what they are by default."""
        return {
            option.name: value
            for option in fields(self)
            if (value := getattr(self, option.name)) != option.default
        }


@dataclass(frozen=True)
class MemoryReport:
    """Device memory of a loaded run, in bytes.

    Attributes:
        weights: resident weights of each loaded plan.
        activations: the block that all plans share for intermediate results.
        buffers: inputs, outputs and caches.
    """

    weights: Mapping[str, int]
    activations: int
    buffers: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON of numbers."""
        return {
            "weights_bytes": dict(self.weights),
            "activations_bytes": self.activations,
            "buffers_bytes": self.buffers,
            "total_bytes": sum(self.weights.values()) + self.activations + self.buffers,
        }


class DeviceRow(ABC):
    """A row that a backend keeps on its device; `np.asarray` copies it to the host."""

    @abstractmethod
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Wait for what was queued, and return a copy."""


Row = np.ndarray | DeviceRow


class Memory(ABC):
    """The buffers of one batch, allocated once on the backend's device."""

    @abstractmethod
    def write(self, buffer: str, value: np.ndarray) -> None:
        """Copy a host array of the buffer's shape and dtype into it."""

    @abstractmethod
    def read(self, buffer: str) -> np.ndarray:
        """Wait for every launch before it, and return a copy of the buffer's contents."""

    def write_rows(self, buffer: str, rows: Mapping[int, Row]) -> None:
        """Copy rows into some indices of the buffer's first axis, and leave the others."""
        whole = self.read(buffer)
        for row, value in rows.items():
            whole[row] = np.asarray(value)
        self.write(buffer, whole)

    def read_rows(self, buffer: str, rows: Sequence[int]) -> list[np.ndarray]:
        """Return copies of some indices of the buffer's first axis; waits as `read` does."""
        whole = self.read(buffer) if rows else np.empty(0)
        return [whole[row].copy() for row in rows]

    def take_rows(self, buffer: str, rows: Sequence[int]) -> list[Row]:
        """Return copies of some indices of the buffer's first axis, where the backend likes."""
        return list(self.read_rows(buffer, rows))

    def stage(self, buffer: str, values: np.ndarray) -> Callable[[int], None]:
        """Take a buffer's contents of several steps [steps, *shape].

        Returns:
            what queues the copy of one step's into the buffer.
        """
        return lambda step: self.write(buffer, values[step])


class Backend(ABC):
    """Loads the graphs of one bundle and runs them on bound buffers.

    Launches run in the order in which they are made. On an asynchronous device they are only
    queued: `synchronize` and `Memory.read` wait, nothing else does.

    Attributes:
        name: one that `select` takes.
        reason: why it was chosen.
        precision: what it computes in, where that is less than what the graphs ask for.
        slow_after_another_shape: the first run's shapes are compiled for, all others are slower,
            and so are the first from then on.
        turns: whose turn it is. Everything from `allocate` to the last `Memory.read` of a run is
            one user's turn.
    """

    name: str
    reason: str = "asked for by name"
    precision: Literal["bf16"] | None = None
    slow_after_another_shape: bool = False

    def __init__(self) -> None:
        self.turns = Turns(self.renew)

    def renew(self) -> None:
        """Let go of every engine, without freeing it, in a process that was forked off.

        Raises:
            BackendError: it cannot be used in a forked process.
        """
        raise BackendError(
            f"{self.name} cannot go on in a forked process",
            "load the pipeline after the fork, or start processes by 'spawn'",
        )

    def check_files(self) -> None:  # noqa: B027 - most of them read no file again
        """Look at the files that engines compute from.

        Raises:
            BundleError: somebody wrote to one.
        """

    @abstractmethod
    def allocate(self, plan: BindingPlan) -> Memory:
        """Load what the plan launches, and allocate its buffers, zeroed.

        A backend serves one shape of a batch at a time: drop the last one's memory first.

        Raises:
            BackendError: names the graph that cannot be loaded, and why.
        """

    @abstractmethod
    def prepare(self, launch: Launch, memory: Memory, batch: int | None = None) -> Execute:
        """Bind a launch's tensors; the result queues it. May run it, to warm up.

        Args:
            launch: one of the plan that the memory was allocated for.
            memory: with the buffers.
            batch: how many indices of every tensor's first axis are in use; all of them when None.
                A backend that has one shape at a time computes the others, too, and nobody reads
                them.
        """

    def batch_size(self, images: int) -> int:
        """Return how many of the images that are left one run can take."""
        return images

    def mark(self) -> Any:
        """Note the moment when the device has done everything queued so far."""
        return perf_counter()

    def seconds(self, start: Any, end: Any) -> float:
        """Return the time between two marks; call `synchronize` before."""
        return float(end - start)

    def synchronize(self) -> None:  # noqa: B027 - most backends have nothing to wait for
        """Wait for everything that was queued."""

    def stop(self) -> None:  # noqa: B027 - a device's launches end by themselves
        """End the launch that runs, from another thread, if the backend can: it raises.

        So do those after it, until `resume`.
        """

    def resume(self) -> None:  # noqa: B027 - nothing to undo
        """Let launches run again after `stop`."""

    def memory_report(self) -> MemoryReport | None:
        """Return the device memory in use, where the backend knows it."""
        return None
