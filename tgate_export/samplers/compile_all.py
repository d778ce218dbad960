"""A bundle's samplers: compiled in a second process while the graphs are exported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Sampler
from tgate_export.bundle.manifest_graphs import Graph, Input, Tensor
from tgate_export.bundle.origins import FromLoop, Loop
from tgate_export.bundle.sampler_table import HISTORY, NUM_WEIGHTS, SamplerTable
from tgate_export.common.errors import ModelError, TGateError
from tgate_export.common.progress import Progress
from tgate_export.samplers import specs
from tgate_export.samplers.table_cache import (
    TableRequest,
    cached_sampler,
    known_sampler,
    why_left_out,
)

# What stands in for a default sampler that cannot be compiled, the best first.
_STAND_INS = ("ddim", "euler", "dpm++2m", "unipc", "deis", "pndm")


def choose_default(wanted: str, compiled: Collection[str], progress: Progress) -> str:
    """Return the default sampler of a bundle: the wanted one, or with a note what comes near it.

    Args:
        wanted: the model's own.
        compiled: the names of the samplers that the bundle has; at least one.
        progress: told when the wanted one was left out.
    """
    near = (wanted, wanted.removesuffix("-karras"), *_STAND_INS, *sorted(compiled))
    chosen = next(name for name in near if name in compiled)
    if chosen != wanted:
        progress.note(
            f"the model's default sampler, {wanted}, was left out: the default is {chosen}"
        )
    return chosen


class SamplerCompilation:
    """Compiles the samplers that a scheduler configuration allows, in the background.

    Those of `SAMPLERS`, or those that are named. Tables that were compiled before are written at
    once; a process is started for the others alone, if there are any.

    Use as a context manager; leaving it stops what is not done. A process of its own, and not of
    `multiprocessing`, which would run the caller's script a second time.
    """

    def __init__(
        self,
        scheduler_config: Mapping[str, Any],
        folder: Path,
        names: Iterable[str] | None = None,
        *,
        family: str = "stable-diffusion",
        starts: bool = False,
    ) -> None:
        folder.mkdir()
        self._names = list(specs.SAMPLERS if names is None else names)
        self._known: dict[str, Sampler] = {}
        for name in self._names:
            file = folder / f"{name}.json"
            request = TableRequest(name, scheduler_config, family, starts)
            if table := known_sampler(request, file):
                self._known[name] = _entry(name, table)
            else:
                file.unlink(missing_ok=True)
        self._process: subprocess.Popen[str] | None = None
        if left := [name for name in self._names if name not in self._known]:
            config = {"scheduler_config": dict(scheduler_config), "family": family}
            self._start(folder, {"names": left, "config": {**config, "starts": starts}})

    def _start(self, folder: Path, task: Mapping[str, Any]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            # Not "-m" alone: that looks for every module in the working directory first.
            [sys.executable, "-P", "-m", __name__, os.fspath(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdin is not None
        # Left open: its end tells the process that the build is gone.
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def __enter__(self) -> SamplerCompilation:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._errors.close()

    def results(self, progress: Progress) -> dict[str, Sampler]:
        """Wait for the tables, and return the samplers of the manifest by name.

        A sampler that cannot be compiled is left out with a note.

        Raises:
            ModelError: when none can be compiled.
            TGateError: when the process failed.
        """
        samplers, refused = dict(self._known), []
        for result in self._compiled(progress):
            if "sampler" in result:
                samplers[result["name"]] = Sampler.model_validate(result["sampler"])
            else:
                refused.append(result["refused"])
                progress.note(result["refused"])
        if not samplers:
            raise ModelError(
                "no sampler can be compiled from the model's scheduler/scheduler_config.json, the "
                f"first of {len(refused)} because: {refused[0]}"
                if refused
                else "no sampler was asked for"
            )
        return {name: samplers[name] for name in self._names if name in samplers}

    def _compiled(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Yield what the process says of each sampler, as it says so."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        for index, line in enumerate(self._process.stdout, start=len(self._known) + 1):
            progress.advance(index, len(self._names))
            yield json.loads(line)
        if self._process.wait():
            self._errors.seek(0)
            reason = self._errors.read().strip().splitlines()
            raise TGateError(f"compiling samplers failed: {reason[-1] if reason else 'killed'}")


def _entry(name: str, table: SamplerTable) -> Sampler:
    return Sampler(
        file=f"samplers/{name}.json",
        scheduler_class=table.scheduler_class,
        extra_evaluations=table.extra_evaluations,
        max_steps=max(table.steps),
    )


def sampler_graph() -> Graph:
    """Return the manifest's entry of the sampler graph."""
    latents = ("batch", "channels", "latent_height", "latent_width")
    history = ("batch", HISTORY, "channels", "latent_height", "latent_width")

    def f32(name: str, shape: tuple[int | str, ...]) -> Tensor:
        return Tensor(name=name, dtype="float32", shape=shape)

    def loop(name: Loop, shape: tuple[int | str, ...]) -> Input:
        return Input(name=name, dtype="float32", shape=shape, origin=FromLoop(loop=name))

    return Graph(
        file="graphs/sampler.onnx",
        weights=None,
        precision="fp32",
        parameters=0,
        inputs=(
            loop("sample", latents),
            loop("noise_pred", latents),
            loop("history", history),
            loop("noise", latents),
            loop("weights", ("batch", NUM_WEIGHTS)),
        ),
        outputs=(
            f32("next_sample", latents),
            f32("denoiser_input", latents),
            f32("next_history", history),
        ),
    )


def _main(folder: Path) -> None:
    """The process: what to compile on stdin, a line of JSON on stdout for each sampler."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the build ends this process itself
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch

    torch.set_num_threads(1)
    for name in task["names"]:
        file = folder / f"{name}.json"
        try:
            table = cached_sampler(TableRequest(name, **task["config"]), file)
        except OSError:  # the disk's: the next sampler would not fare better
            raise
        except Exception as error:  # diffusers refuses configurations by errors of any class
            file.unlink(missing_ok=True)
            why = why_left_out(name, error)
            print(json.dumps({"name": name, "refused": why}), flush=True)  # noqa: T201
            continue
        entry = _entry(name, table).model_dump()
        print(json.dumps({"name": name, "sampler": entry}), flush=True)  # noqa: T201


def _end_with_parent() -> None:
    """End when stdin does: a killed build must leave nobody behind who writes files."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
