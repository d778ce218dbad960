"""Tables of samplers that a bundle lacks, made where diffusers is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from tgate_export.bundle.integrity import Bundle
from tgate_export.bundle.sampler_file import read_sampler_table
from tgate_export.bundle.sampler_names import SCHEDULER_CONFIG
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.common.errors import BundleError, InvalidRequestError, TGateError
from tgate_export.common.json_file import RECORD_BYTES, read_json
from tgate_export.runtime.rebuild import rebuild

_PROGRAM = "tgate_export.samplers.on_demand"
_SECONDS = 600  # far above what a table takes
_MOST_TRAINED = 10**5  # timesteps of a model; they have 1,000
_one = threading.Lock()  # such a process has PyTorch in memory


def _renew_lock() -> None:
    """Let a fork compile though another thread of its parent was at it."""
    global _one
    _one = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def compile_table(bundle: Bundle, scheduler: str, steps: int, *, starts: bool) -> SamplerTable:
    """Return a table that the bundle lacks, for one number of steps, from the user's cache or anew.

    Compiling takes diffusers, and seconds; a process of its own does it, one at a time, so that
    this one need not load PyTorch.

    Args:
        bundle: the bundle.
        scheduler: a name as `chosen_sampler` returns it.
        steps: how many.
        starts: with runs that begin at a later step.

    Raises:
        InvalidRequestError: diffusers is not here, or has no such sampler for the model.
        BundleError: the model's configuration cannot be read.
        TGateError: the process failed.
    """
    if SCHEDULER_CONFIG not in bundle.manifest.files:
        raise _without_starts(bundle)
    missing = [name for name in ("diffusers", "torch") if importlib.util.find_spec(name) is None]
    if missing:
        hint = () if "@" in scheduler else ("where it is: ", rebuild(bundle, samplers=scheduler))
        if scheduler in bundle.manifest.samplers:
            raise _without_starts(bundle)
        raise InvalidRequestError(
            f"this bundle has no table of {scheduler}, and {missing[0]} is not installed here to "
            "make one",
            *hint,
            field="scheduler",
        )
    task = {
        "name": scheduler,
        "scheduler_config": scheduler_config(bundle),
        "family": bundle.manifest.family,
        "starts": starts,
        "steps": steps,
    }
    with _one, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.json"
        try:
            done = subprocess.run(
                # Not "-m" alone: that looks for every module in the working directory first.
                [sys.executable, "-P", "-m", _PROGRAM, str(file)],
                input=json.dumps(task), capture_output=True, text=True, timeout=_SECONDS,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise TGateError(f"compiling {scheduler} failed: {error}") from None
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise TGateError(f"compiling {scheduler} failed: {reason[-1] if reason else 'killed'}")
        if not file.is_file():
            raise InvalidRequestError(done.stdout.strip(), field="scheduler")
        return read_sampler_table(file)


def _without_starts(bundle: Bundle) -> InvalidRequestError:
    return InvalidRequestError(
        "this bundle was built without image-to-image, so that no run of it begins with an image",
        "build it with: ",
        rebuild(bundle, image_to_image=True),
    )


def scheduler_config(bundle: Bundle) -> dict[str, Any]:
    """Return the configuration of the model's own scheduler; none of a bundle that has no file.

    Raises:
        BundleError: it cannot be read.
    """
    if SCHEDULER_CONFIG not in bundle.manifest.files:
        return {}
    file = bundle.file(SCHEDULER_CONFIG)
    try:
        with bundle.reading(SCHEDULER_CONFIG):
            found = read_json(file, RECORD_BYTES)
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}: build the bundle again") from None
    trained = found.get("num_train_timesteps", 0) if isinstance(found, dict) else None
    if not isinstance(trained, int) or trained > _MOST_TRAINED:
        raise BundleError(f"{file} is not a scheduler's configuration: build the bundle again")
    return dict(found)
