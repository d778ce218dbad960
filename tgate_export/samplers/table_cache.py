"""Sampler tables that were compiled before, for the same scheduler by the same code."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tgate_export.bundle.sampler_file import read_sampler_table, write_sampler_table
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.errors import InvalidRequestError, first_line
from tgate_export.common.user_cache import cache_folder, read_cached, write_cached
from tgate_export.samplers.specs import sampler_spec


@dataclass(frozen=True)
class TableRequest:
    """What a table is compiled from.

    Attributes:
        name: of the sampler, see `bundle.sampler_names`.
        scheduler_config: the configuration of the pipeline's own scheduler.
        family: of the model.
        starts: with runs that begin at a later step.
        steps: the one number of steps that it is for; all when None.
    """

    name: str
    scheduler_config: Mapping[str, Any]
    family: str = "stable-diffusion"
    starts: bool = False
    steps: int | None = None


def cached_sampler(request: TableRequest, file: Path) -> SamplerTable:
    """Write a sampler's table, compiled now or before.

    A model's schedulers are those of many others, and compiling all of them takes a core half a
    minute, with starts two.

    Args:
        request: what it is compiled from.
        file: what to write.

    Raises:
        InvalidRequestError: there is no such sampler for the family.
        UnsupportedSchedulerError: when the scheduler does not fit.
    """
    if (table := known_sampler(request, file)) is not None:
        return table
    from tgate_export.samplers.tables import compile_sampler

    table = compile_sampler(
        request.name, request.scheduler_config,
        None if request.steps is None else (request.steps,),
        family=request.family, starts=request.starts,
    )  # fmt: skip
    write_sampler_table(table, file)
    write_cached(_cache_file(request), file.read_bytes())
    return table


def known_sampler(request: TableRequest, file: Path) -> SamplerTable | None:
    """Write a sampler's table if it was compiled before; see `cached_sampler` (no torch)."""
    if (content := read_cached(_cache_file(request))) is not None:
        file.write_bytes(content)
        with contextlib.suppress(ValueError):  # damaged
            return read_sampler_table(file)
    return None


def why_left_out(name: str, error: Exception) -> str:
    """Return in one line why a sampler cannot be compiled; diffusers has errors of any class."""
    if isinstance(error, InvalidRequestError):  # ours
        return str(error)
    return (
        f"scheduler {name!r} ({sampler_spec(name).scheduler_class}) is left out: "
        f"{type(error).__name__}: {first_line(error)}"
    )


def _cache_file(request: TableRequest) -> Path:
    return cache_folder("samplers") / f"{_key(request)}.json"


def _key(request: TableRequest) -> str:
    """Hash everything that a table depends on."""
    content = {
        "name": request.name,
        "spec": asdict(sampler_spec(request.name, request.family)),
        "config": dict(request.scheduler_config),
        "starts": request.starts,
        "steps": request.steps,
        "code": code_sha256("samplers.table_cache"),
        "versions": {package: metadata.version(package) for package in ("diffusers", "torch")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
