"""Solver tables that were compiled before, for the same scheduler by the same code."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import tgate_export
from tgate_export.bundle.solver_file import read_solver_table, write_solver_table
from tgate_export.bundle.solver_table import SolverTable
from tgate_export.cache import cache_folder, keep, kept
from tgate_export.export.solver_tables import SOLVERS, compile_solver


def cached_solver(
    name: str, scheduler_config: Mapping[str, Any], file: Path, *, starts: bool
) -> SolverTable:
    """Write a sampler's table, compiled now or before.

    A model's schedulers are those of many others, and compiling all of them takes a core half a
    minute, with starts two.

    Args:
        name: a key of `SOLVERS`.
        scheduler_config: the configuration of the pipeline's own scheduler.
        file: what to write.
        starts: with runs that begin at a later step.

    Raises:
        UnsupportedSchedulerError: when the scheduler does not fit.
    """
    known = cache_folder("solvers") / f"{_key(name, scheduler_config, starts)}.json"
    if (content := kept(known)) is not None:
        file.write_bytes(content)
        with contextlib.suppress(ValueError):  # damaged
            return read_solver_table(file)
    table = compile_solver(name, scheduler_config, starts=starts)
    write_solver_table(table, file)
    keep(known, file.read_bytes())
    return table


def _key(name: str, scheduler_config: Mapping[str, Any], starts: bool) -> str:
    """Hash everything that a table depends on."""
    package = Path(tgate_export.__file__).parent
    code = hashlib.sha256()
    for path in sorted(package.glob("*/solver_*.py")):
        code.update(path.name.encode() + b"\0" + path.read_bytes())
    spec = SOLVERS[name]
    content = {
        "name": name,
        "class": spec.scheduler_class,
        "overrides": dict(spec.overrides),
        "config": dict(scheduler_config),
        "starts": starts,
        "code": code.hexdigest(),
        "versions": {package: metadata.version(package) for package in ("diffusers", "torch")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
