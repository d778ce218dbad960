"""A bundle's samplers: compiled in a second process while the graphs are exported."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tgate_export.bundle.manifest import Graph, Solver, Tensor
from tgate_export.bundle.solver_table import HISTORY, NUM_WEIGHTS
from tgate_export.errors import ModelError
from tgate_export.export.progress import Progress


class SolverJobs:
    """Compiles every sampler that a scheduler configuration allows, in the background.

    Use as a context manager; leaving it stops what is not done.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], folder: Path) -> None:
        from tgate_export.export.solver_tables import SOLVERS

        folder.mkdir()
        # Spawned: a forked child of a process that runs torch's threads can deadlock.
        self._pool = ProcessPoolExecutor(
            1, mp_context=multiprocessing.get_context("spawn"), initializer=_depend_on_parent
        )
        self._jobs: dict[str, Future[Solver | str]] = {
            name: self._pool.submit(_compile, name, dict(scheduler_config), folder)
            for name in SOLVERS
        }

    def __enter__(self) -> SolverJobs:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def results(self, required: str, progress: Progress) -> dict[str, Solver]:
        """Wait for the tables, and return the samplers of the manifest by name.

        A sampler that does not fit is left out with a note.

        Raises:
            ModelError: when `required`, the default sampler, does not fit.
        """
        solvers = {}
        for index, (name, job) in enumerate(self._jobs.items()):
            progress.advance(index, len(self._jobs))
            result = job.result()
            if isinstance(result, Solver):
                solvers[name] = result
            elif name == required:
                raise ModelError(result)
            else:
                progress.note(result)
        return solvers


def _depend_on_parent() -> None:
    """End this process with the build: killed, it must leave nobody behind who writes files."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the build cleans up for both
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _compile(name: str, scheduler_config: dict[str, Any], folder: Path) -> Solver | str:
    """Write one sampler's table; return its manifest entry, or why it does not fit."""
    import torch

    from tgate_export.bundle.solver_table import write_solver_table
    from tgate_export.export.solver_tables import UnsupportedSchedulerError, compile_solver

    torch.set_num_threads(1)
    try:
        table = compile_solver(name, scheduler_config)
    except UnsupportedSchedulerError as error:
        return str(error)
    write_solver_table(table, folder / f"{name}.json")
    return Solver(
        file=f"solvers/{name}.json",
        scheduler_class=table.scheduler_class,
        extra_evaluations=table.extra_evaluations,
        max_steps=max(table.steps),
    )


def solver_graph() -> Graph:
    """Return the manifest's entry of the solver graph."""
    latents = ("batch", "channels", "latent_height", "latent_width")
    history = ("batch", HISTORY, "channels", "latent_height", "latent_width")

    def f32(name: str, shape: tuple[int | str, ...]) -> Tensor:
        return Tensor(name=name, dtype="float32", shape=shape)

    return Graph(
        file="graphs/solver.onnx",
        weights=None,
        parameters=0,
        inputs=(
            f32("sample", latents),
            f32("noise_pred", latents),
            f32("history", history),
            f32("weights", ("batch", NUM_WEIGHTS)),
        ),
        outputs=(
            f32("next_sample", latents),
            f32("denoiser_input", latents),
            f32("next_history", history),
        ),
    )
