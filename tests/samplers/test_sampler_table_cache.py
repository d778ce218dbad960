"""Tables are compiled once for a scheduler, and a damaged or foreign one never serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tgate_export.bundle.sampler_file import read_sampler_table
from tgate_export.common.user_cache import cache_folder
from tgate_export.samplers import tables
from tgate_export.samplers.table_cache import TableRequest, cached_sampler
from tgate_export.samplers.tables import compile_sampler

CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty cache; the names of the tables that are compiled, 3 steps long."""
    names: list[str] = []

    def compile_and_note(name: str, config: Any, counts: Any, **options: Any) -> Any:
        names.append(name)
        return compile_sampler(name, config, counts or (1, 2, 3), **options)

    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tables, "compile_sampler", compile_and_note)
    return names


def test_the_same_scheduler_is_compiled_once(compiled: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    table = cached_sampler(TableRequest("euler", CONFIG), first)
    again = cached_sampler(TableRequest("euler", CONFIG), second)
    assert compiled == ["euler"]
    assert first.read_bytes() == second.read_bytes()
    assert table.steps.keys() == again.steps.keys() == {1, 2, 3}


@pytest.mark.parametrize(
    ("name", "config", "starts"),
    [
        ("deis", CONFIG, False),
        ("euler", CONFIG | {"beta_end": 0.02}, False),
        ("euler", CONFIG, True),
    ],
)
def test_what_a_table_depends_on(
    compiled: list[str], tmp_path: Path, name: str, config: dict[str, Any], starts: bool
) -> None:
    cached_sampler(TableRequest("euler", CONFIG), tmp_path / "one.json")
    cached_sampler(TableRequest(name, config, starts=starts), tmp_path / "other.json")
    assert compiled == ["euler", name]
    assert (tmp_path / "one.json").read_bytes() != (tmp_path / "other.json").read_bytes()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff"])
def test_a_damaged_table_is_compiled_again(
    compiled: list[str], tmp_path: Path, damage: bytes
) -> None:
    file = tmp_path / "euler.json"
    cached_sampler(TableRequest("euler", CONFIG), file)
    good = file.read_bytes()
    (kept,) = cache_folder("samplers").iterdir()
    kept.write_bytes(damage)
    cached_sampler(TableRequest("euler", CONFIG), file)
    assert file.read_bytes() == kept.read_bytes() == good
    assert compiled == ["euler", "euler"]
    read_sampler_table(kept)


def test_a_cache_that_cannot_be_written_is_none(
    compiled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("TGATE_EXPORT_CACHE", str(tmp_path / "file"))
    for name in ("one", "two"):
        cached_sampler(TableRequest("euler", CONFIG), tmp_path / f"{name}.json")
    assert compiled == ["euler", "euler"]
