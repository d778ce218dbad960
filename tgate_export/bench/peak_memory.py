"""Peak host memory of a process that loads a bundle and makes one batch.

In a process of its own, since everything else that is measured shares one: several bundles and
backends are loaded there. `VmHWM` belongs to the new program; `ru_maxrss` would carry over from
the process that started it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click


def measure_peak(bundle: Path, backend: str, call: dict[str, Any]) -> int | None:
    """Return bytes, or None where the system does not tell or the process fails."""
    arguments = json.dumps({"bundle": str(bundle), "backend": backend, "call": call})
    try:
        ended = subprocess.run(
            # Not "-m" alone: that looks for every module in the working directory first.
            [sys.executable, "-P", "-m", __name__, arguments],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return int(ended.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _high_water_mark() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM")


def _main() -> None:
    from tgate_export.runtime.pipeline import TGatePipeline

    arguments = json.loads(sys.argv[1])
    pipeline = TGatePipeline.from_bundle(
        arguments["bundle"], arguments["backend"], check_hashes=False
    )
    pipeline(**arguments["call"], output_type="np")
    click.echo(_high_water_mark())


if __name__ == "__main__":
    _main()
