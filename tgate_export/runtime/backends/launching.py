"""Launches whose errors are this package's own."""

from __future__ import annotations

from tgate_export.common.errors import TGateError, first_line
from tgate_export.runtime.backends.base import Backend, BackendError, Execute, Memory
from tgate_export.runtime.plan import Launch


def bind(backend: Backend, launch: Launch, memory: Memory, batch: int) -> Execute:
    """Bind a launch, as `Backend.prepare`.

    Engines hold a graph's own types and shapes against the buffers that its manifest asked for:
    some when it is bound, others when it runs.

    Raises:
        BackendError: names the graph that does not fit; so does the result when it runs.
    """

    def failure(error: Exception) -> BackendError:
        return BackendError(
            f"{backend.name} cannot run graph {launch.graph!r} ({first_line(error)})",
            "if it is not what the bundle's manifest says, build the bundle again",
        )

    try:
        execute = backend.prepare(launch, memory, batch)
    except (TGateError, MemoryError):
        raise
    except Exception as error:  # engines raise types of their own
        raise failure(error) from error

    def run() -> None:
        try:
            execute()
        except (TGateError, MemoryError):
            raise
        except Exception as error:
            raise failure(error) from error

    return run
