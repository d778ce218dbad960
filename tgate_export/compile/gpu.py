"""Which GPU this machine has."""

from __future__ import annotations


def local_compute_capability() -> tuple[str | None, str]:
    """Return the compute capability of the first GPU, such as "8.9", or None and the reason."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None, "no NVIDIA GPU can be seen, as cuda-bindings is not installed"
    try:
        status, count = runtime.cudaGetDeviceCount()
        if status != runtime.cudaError_t.cudaSuccess or not count:
            return None, "this machine has no NVIDIA GPU or no CUDA driver"
        _, properties = runtime.cudaGetDeviceProperties(0)
    except RuntimeError as error:  # no CUDA runtime library
        return None, f"no NVIDIA GPU can be seen ({error})"
    return f"{properties.major}.{properties.minor}", ""
