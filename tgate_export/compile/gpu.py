"""Which GPU this machine has."""

from __future__ import annotations

from tgate_export.bundle.plans import Library


def local_compute_capability(library: Library) -> tuple[str | None, str]:
    """Return the compute capability of the GPU, such as "8.9", or None and the reason."""
    from tgate_export.runtime.backends.base import BackendError
    from tgate_export.runtime.backends.cuda import Cuda

    try:
        return Cuda(extra=library).compute_capability(), ""
    except BackendError as error:
        return None, error.message
