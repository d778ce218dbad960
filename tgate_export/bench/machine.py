"""Facts about the machine and the installed packages, for reports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tgate_export.bench.result import Machine
from tgate_export.runtime.backends import specs

_PACKAGES = ("numpy", "onnx", "scikit-image", "scipy")
_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cpus(),
        memory_bytes=_memory(),
        gpu=_gpu(),
        python=platform.python_version(),
        packages={name: version for name in _packages() if (version := _version(name))},
        environment={name: os.environ[name] for name in _THREADS if name in os.environ},
    )


def now() -> str:
    """Return the time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _cpus() -> int:
    return os.cpu_count() or 1


def _packages() -> list[str]:
    """List what takes part: this package, what installed the backends, and what measures."""
    installed = metadata.packages_distributions()
    engines = [name for spec in specs().values() for name in installed.get(spec.module, ())]
    return list(dict.fromkeys(["tgate-export", *engines, *_PACKAGES]))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
