"""Sampler tables that were compiled before, for the same scheduler by the same code."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tgate_export.bundle.sampler_file import read_sampler_table, write_sampler_table
from tgate_export.bundle.sampler_table import SamplerTable
from tgate_export.common.code_hash import code_sha256
from tgate_export.common.user_cache import cache_folder, read_cached, write_cached
from tgate_export.samplers.specs import sampler_spec


def cached_sampler(
    name: str, scheduler_config: Mapping[str, Any], file: Path, *, starts: bool
) -> SamplerTable:
    """Write a sampler's table, compiled now or before.

    A model's schedulers are those of many others, and compiling all of them takes a core half a
    minute, with starts two.

    Args:
        name: a key of `SAMPLERS`.
        scheduler_config: the configuration of the pipeline's own scheduler.
        file: what to write.
        starts: with runs that begin at a later step.

    Raises:
        UnsupportedSchedulerError: when the scheduler does not fit.
    """
    if (table := known_sampler(name, scheduler_config, file, starts=starts)) is not None:
        return table
    from tgate_export.samplers.tables import compile_sampler

    table = compile_sampler(name, scheduler_config, starts=starts)
    write_sampler_table(table, file)
    write_cached(_cache_file(name, scheduler_config, starts), file.read_bytes())
    return table


def known_sampler(
    name: str, scheduler_config: Mapping[str, Any], file: Path, *, starts: bool
) -> SamplerTable | None:
    """Write a sampler's table if it was compiled before; see `cached_sampler` (no torch)."""
    if (content := read_cached(_cache_file(name, scheduler_config, starts))) is not None:
        file.write_bytes(content)
        with contextlib.suppress(ValueError):  # damaged
            return read_sampler_table(file)
    return None


def _cache_file(name: str, scheduler_config: Mapping[str, Any], starts: bool) -> Path:
    return cache_folder("samplers") / f"{_key(name, scheduler_config, starts)}.json"


def _key(name: str, scheduler_config: Mapping[str, Any], starts: bool) -> str:
    """Hash everything that a table depends on."""
    spec = sampler_spec(name)
    content = {
        "name": name,
        "class": spec.scheduler_class,
        "overrides": dict(spec.overrides),
        "config": dict(scheduler_config),
        "starts": starts,
        "code": code_sha256("samplers.table_cache"),
        "versions": {package: metadata.version(package) for package in ("diffusers", "torch")},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
